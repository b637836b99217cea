"""Tools that look at and change files; none of them trains."""
