"""One rank of each role (policy, critic, reward, reference), without Ray; ``actors/`` runs each in its process."""
