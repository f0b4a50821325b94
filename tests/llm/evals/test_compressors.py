"""Compressors with a prefix: what they cost, and that the prefix is really used to its beginning."""

import lzma

import numpy as np
import zstandard

from llm.evals.compressors import measure_xz, measure_zstd, size_xz


def make_noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def test_noise_costs_eight_bits_and_repeated_noise_next_to_nothing() -> None:
    train, text = make_noise(0, 200_000), make_noise(1, 20_000)
    for measure in (measure_xz, measure_zstd):
        assert 7.99 < measure(train, text) < 8.1, measure.__name__
        assert measure(train, train[:20_000]) < 0.2, measure.__name__


def test_zstd_window_reaches_the_first_byte_of_a_long_prefix() -> None:
    # The repeated bytes lie 9 MB back, beyond the 8 MB window of plain level 19.
    text = make_noise(2, 20_000)
    train = text + bytes(9_000_000)
    assert measure_zstd(train, text) < 0.1
    plain = zstandard.ZstdCompressionParameters.from_level(19, window_log=23)
    stream = zstandard.ZstdCompressor(compression_params=plain).compressobj()
    stream.compress(train)
    stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert 8 * (len(stream.compress(text)) + len(stream.flush())) / len(text) > 7.9


def test_xz_size_is_that_of_the_xz_format_without_its_container() -> None:
    data = b"the cat sat on the mat. " * 300 + make_noise(3, 5000)
    packed = lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    assert 0 < len(packed) - size_xz(data, len(data)) < 100


def test_a_related_prefix_helps() -> None:
    words = [b"array", b"shape", b"returns", b"value", b"of the", b"index"]
    random = np.random.default_rng(4)
    train, text = (b" ".join(words[i] for i in random.integers(0, len(words), n)) for n in (20_000, 500))
    for measure in (measure_xz, measure_zstd):
        assert measure(train, text) < measure(make_noise(5, 1000), text), measure.__name__
