"""llama.cpp's own HTTP server over one GGUF file, until its standard input ends; its first line is its address.

Continuous batching, flash attention and warm-up are on. It runs in the project's venv, which holds xllamacpp.
"""

import argparse
import sys

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gguf")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True, help="requests that run at once")
    parser.add_argument("--context", type=int, required=True, help="tokens of one slot")
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.gguf
    params.n_ctx = arguments.slots * arguments.context
    params.n_parallel = arguments.slots
    params.n_threads_http = arguments.slots + 2  # one holds each stream
    params.cont_batching = True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.fit_params = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
