"""How new policy weights reach the engines, and how an engine proves which weights it holds."""
