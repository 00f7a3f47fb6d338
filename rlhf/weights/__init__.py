"""Transfer of policy weights to the engines, and fingerprints that verify which weights an engine holds."""
