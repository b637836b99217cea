"""The demonstration: teaches the embedded base a thing it has never seen, and shows before and after."""
