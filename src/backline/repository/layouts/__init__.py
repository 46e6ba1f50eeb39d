"""How a place is arranged: the layouts of several servers, what a folder of a model holds, and which versions there are."""
