"""Runs vLLM on a folder in a process of its own and prints the tokens it chooses, as JSON.

``python engine.py FOLDER RANKS COMPILED TOKENS``, the prompts as JSON on standard input.
"""

import json
import os
import sys

if __name__ == "__main__":
    folder, ranks, compiled, tokens = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "compiled", int(sys.argv[4])
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if ranks == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams

    prompts = json.load(sys.stdin)
    engine = LLM(
        folder,
        dtype="float32",
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=not compiled,
        tensor_parallel_size=ranks,
    )
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = engine.generate(asked, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    print("TOKENS", json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))
