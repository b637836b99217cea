"""How the embedded base model and the bundled pictures are made (see assets/base/RECIPE.md)."""
