"""When to retrain: Prefect flows that run DVC stages and then act on the outside world."""
