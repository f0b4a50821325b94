"""What runs, times, records and shows a stage. Nothing here may change a stage's result."""
