"""The runs there are: what is known of each, filters and order, tables, the bin, exports."""
