"""Models, and the sizes of models that were published."""
