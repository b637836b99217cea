"""The tab *Athanor*: screens of plain HTML that `javascript/` fills and keeps up to date over our routes."""
