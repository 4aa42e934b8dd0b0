"""The interfaces between the engine and what it drives, and the values that cross them."""
