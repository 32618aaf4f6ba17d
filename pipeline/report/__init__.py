"""A run told to those who did not watch it: a page, and the forms that CI shows."""
