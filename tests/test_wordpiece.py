"""WordPiece with a vocabulary of the user's, alone and through a source."""

import numpy as np
import pytest

from jcmr.data import text
from jcmr.data.sources import precomp
from jcmr.data.wordpiece import encode_captions

PIECES = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "run", "##ning", ",",
          "cafe")  # fmt: skip


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return path


def read(ids):
    return " ".join(PIECES[i] for i in ids if i)


def test_captions_become_pieces(vocabulary):
    loaded = text.load_vocabulary(vocabulary)
    captions = ["Dogs running, a CAFÉ", "a zebra", "a a a a a a a a a"]
    ids = encode_captions(captions, None, loaded, 8)
    assert ids.dtype == np.int32 and ids.shape == (3, 8)
    assert read(ids[0]) == "[CLS] dog ##s run ##ning , a [SEP]"
    assert read(ids[1]) == "[CLS] a [UNK] [SEP]" and not ids[1, 4:].any()
    assert read(ids[2]) == "[CLS] a a a a a a [SEP]"
    assert encode_captions([], None, loaded, 8).shape == (0, 8)
    with pytest.raises(ValueError, match=r"set config\.data\.token_drop_rate to 0"):
        text.drop_tokens(ids[0], np.random.default_rng(0), 0.1)


def test_a_vocabulary_with_capitals_keeps_them(vocabulary):
    vocabulary.write_text("\n".join([*PIECES, "Dog"]))
    ids = encode_captions(["Dog dog"], None, text.load_vocabulary(vocabulary), 4)
    assert ids.tolist() == [[3, len(PIECES), 6, 4]]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (PIECES[1:], r"vocab.txt is no vocab.txt of a BERT: it has no \[PAD\]"),
        (PIECES[::-1], r"\[PAD\] is not on its first line"),
        ((*PIECES, "a"), r"vocab.txt, line 13: 'a' is there already, on line 6"),
    ],
)
def test_other_files_are_refused(vocabulary, lines, message):
    vocabulary.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message):
        text.load_vocabulary(vocabulary)


def test_a_source_reads_pieces(vocabulary, tmp_path):
    for split in ("train", "dev", "test"):
        np.save(tmp_path / f"{split}_ims.npy", np.ones((1, 4, 3), np.float32))
        (tmp_path / f"{split}_caps.txt").write_text("dogs running\n" * 5)
    source = precomp.make({"dir": str(tmp_path), "vocabulary": str(vocabulary), "max_words": 7})
    assert source.info["vocab_size"] == len(PIECES)
    expected = "[CLS] dog ##s run ##ning [SEP]"
    assert read(source.train[0]["text"]) == expected
    assert read(source.retrieval("test").items["text"][2]["text"]) == expected
    assert read(source.tokenize(["Dogs running"])[0]) == expected
