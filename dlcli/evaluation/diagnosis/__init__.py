"""Why a run went as it did: the evidence in its folder, and the reasons that it gives."""
