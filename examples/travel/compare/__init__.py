"""The ways to adapt a model on the travel example's world, compared by text metrics, retrieval, people and a judge."""
