"""One file per command, nothing heavier than Typer at the top: parse, call one function, print."""
