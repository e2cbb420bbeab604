"""What a model is: its modules by plain name, their kinds, which of them are chosen."""
