"""From a checkpoint to production: the registry, and the decisions of the gateway; pure, with an injected clock."""
