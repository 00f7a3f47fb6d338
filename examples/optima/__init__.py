"""Four problems whose best policy is known in closed form: does the trainer find it through Ray, vLLM, DeepSpeed?"""
