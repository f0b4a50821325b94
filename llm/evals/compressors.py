"""General compressors as baselines: what text costs after they have read the training text.

Both get the whole training text as prefix within one window that covers it, so every byte of it can be
referred to. They code the same stream as the model: documents in order, each with one terminator byte.
"""

import lzma

import zstandard

MAX_LZMA_DICTIONARY = 3 << 29


def measure_xz(train: bytes, text: bytes) -> float:
    """Return bits per byte of `text` after `train` with xz -9e: 8 (|C(train + text)| - |C(train)|) / |text|.

    Source:  LZMA2 without container, so that no header is charged.
    """
    return 8 * (size_xz(train + text, len(train) + len(text)) - size_xz(train, len(train) + len(text))) / len(text)


def size_xz(data: bytes, window: int) -> int:
    """Return the bytes that xz -9e needs for `data` with a dictionary of at least `window`."""
    dictionary = min(MAX_LZMA_DICTIONARY, max(1 << 16, window + 4096))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(data, format=lzma.FORMAT_RAW, filters=filters))


def measure_zstd(train: bytes, text: bytes, level: int = 19) -> float:
    """Return bits per byte of `text` after `train` with zstd: 8 (bytes put out for it) / |text|.

    One pass: the output is flushed at the end of `train`, which keeps all history.
    """
    size = len(train) + len(text)
    window_log = min(zstandard.WINDOWLOG_MAX, max(zstandard.WINDOWLOG_MIN, size.bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(level, source_size=size, window_log=window_log)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    stream.compress(train)
    stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return 8 * (len(stream.compress(text)) + len(stream.flush())) / len(text)
