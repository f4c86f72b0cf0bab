"""Captions, vocabularies, token dropping and word vectors."""

import collections
import json
import os
import pickle
import sys
import types
from pathlib import Path

import nltk
import numpy as np
import pytest

from jcmr.data import text
from jcmr.data.glove import load_glove, spellings
from jcmr.data.text import END, START, UNK

VOCABULARY = text.build_vocabulary([["a", "dog"], ["a", "cat", "runs"]])


def test_tokens_are_those_of_the_treebank_without_any_download(monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [])

    def tokens(caption):
        return " ".join(text.tokenize(caption))

    caption = "A man isn't riding. The dog's \"red\" ball, (ok) 3.5 ... black/white"
    expected = "a man is n't riding . the dog 's `` red '' ball , ( ok ) 3.5 ... black/white"
    assert tokens(caption) == expected
    assert tokens("Mr. Smith of the U.S. army .") == "mr. smith of the u.s. army ."
    assert tokens("I can't. It's red-headed!") == "i ca n't . it 's red-headed !"
    assert text.tokenize(" \t ") == []


def test_vocabulary_is_built_by_count_in_a_fixed_order():
    captions = [["b", "a"], ["b", "c"], ["b", "c", "<unk>"]]
    built = text.build_vocabulary(captions, min_count=2)
    assert built == {"<pad>": 0, "<start>": 1, "<end>": 2, "<unk>": 3, "b": 4, "c": 5}


def test_encode_pads_cuts_and_knows_unknown_words():
    ids = text.encode(["a", "cat", "zebra"], VOCABULARY, 7)
    assert ids.tolist() == [START, VOCABULARY["a"], VOCABULARY["cat"], UNK, END, 0, 0]
    assert ids.dtype == np.int32
    assert text.encode(["a"] * 9, VOCABULARY, 4).tolist() == [START, 4, 4, END]
    with pytest.raises(ValueError, match="no words"):
        text.encode([], VOCABULARY, 5)


def test_token_dropping_has_the_official_rates():
    words = np.arange(4, 24)
    ids = np.concatenate([[START], words, [END], np.zeros(6)]).astype(np.int32)
    transform = text.make_token_dropping(0.1)
    rng = np.random.default_rng(0)
    unknown = 0
    for _ in range(2000):
        dropped = transform({"text": ids}, rng)["text"]
        inner = dropped[1:19]
        assert dropped[0] == START and dropped[19] == END and not dropped[20:].any()
        known = inner[inner != UNK]
        assert (np.diff(known) > 0).all()  # the order of words stays
        unknown += (inner == UNK).sum()
    assert abs(unknown / (2000 * 18) - 0.1) < 0.01
    several = transform({"text": np.stack([ids, ids])}, rng)["text"]
    assert several.shape == (2, 28) and (several[0] != several[1]).any()
    assert transform({"text": ids}, np.random.default_rng(5))["text"].tolist() == (
        transform({"text": ids}, np.random.default_rng(5))["text"].tolist()
    )
    short = text.encode(["a"], VOCABULARY, 5)
    assert text.drop_tokens(short, rng, 0.0).tolist() == short.tolist()


@pytest.mark.parametrize("form", ["list", "dict", "word2idx"])
def test_json_vocabularies_of_every_official_form(tmp_path, form):
    words = list(VOCABULARY)
    content = {
        "list": words,
        "dict": VOCABULARY,
        "word2idx": {"word2idx": VOCABULARY, "idx2word": dict(enumerate(words)), "idx": len(words)},
    }[form]
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(content))
    assert text.load_vocabulary(path) == VOCABULARY


def test_saved_vocabularies_come_back_and_leave_nothing_half_written(tmp_path):
    vocabulary = text.build_vocabulary([["café", "a"]])
    text.save_vocabulary(tmp_path / "v.json", vocabulary)
    assert text.load_vocabulary(tmp_path / "v.json") == vocabulary
    assert os.listdir(tmp_path) == ["v.json"]


def official_pickle(monkeypatch, protocol: int) -> bytes:
    """The bytes of a pickled object of a class `datasets.vocab.Vocabulary` that we do not have."""
    module = types.ModuleType("vocab_of_the_paper")

    class Vocabulary:
        pass

    Vocabulary.__module__, Vocabulary.__qualname__ = module.__name__, "Vocabulary"
    setattr(module, "Vocabulary", Vocabulary)  # noqa: B010
    monkeypatch.setitem(sys.modules, module.__name__, module)
    vocabulary = Vocabulary()
    vocabulary.__dict__.update(
        word2idx=VOCABULARY, idx2word={i: w for w, i in VOCABULARY.items()}, idx=len(VOCABULARY)
    )
    content = pickle.dumps(vocabulary, protocol)
    monkeypatch.delitem(sys.modules, module.__name__)
    return content


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_official_pickles_are_read_without_their_class(tmp_path, monkeypatch, protocol):
    path = tmp_path / "vocab.pkl"
    path.write_bytes(official_pickle(monkeypatch, protocol))
    assert text.load_vocabulary(path) == VOCABULARY
    path.write_bytes(pickle.dumps(VOCABULARY, protocol))
    assert text.load_vocabulary(path) == VOCABULARY


class Attack:
    def __reduce__(self):
        return os.system, ("touch broken_in",)


@pytest.mark.parametrize(
    "content",
    [Attack(), {"word2idx": Attack()}, collections.OrderedDict(a=1), Path("x"), [print]],
    ids=lambda x: type(x).__name__,
)
def test_pickles_that_ask_for_anything_else_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"vocab.pkl was not loaded: it asks for .*no vocabulary"):
        text.load_vocabulary("vocab.pkl")
    assert os.listdir(tmp_path) == ["vocab.pkl"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("v.json", b"{", "is not JSON"),
        ("v.json", b"3", "no mapping"),
        ("v.json", b'["<pad>", "<start>", "<end>", "a"]', "gives <unk> the id None; expected 3"),
        ("v.json", b'{"<pad>":0,"<start>":1,"<end>":2,"<unk>":3,"a":9}', "are not 0 to 4"),
        ("v.json", b'{"a": "b"}', "maps 'a' to 'b'"),
        ("v.pkl", pickle.dumps(VOCABULARY)[:40], "was not loaded"),
        ("v.pkl", pickle.dumps([1, 2]), "holds a list"),
    ],
)
def test_damaged_vocabularies_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        text.load_vocabulary(tmp_path / name)
    assert name in str(raised.value)


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no vocabulary file .*nope.json"):
        text.load_vocabulary(tmp_path / "nope.json")


def test_the_fingerprint_tells_vocabularies_apart_not_their_order():
    expected = text.fingerprint(VOCABULARY)
    assert text.fingerprint(dict(reversed(VOCABULARY.items()))) == expected
    assert text.fingerprint(text.build_vocabulary([["a", "dog"]])) != expected


def test_lines_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "caps.txt"
    path.write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9\r\na caf\xe9\n")
    with pytest.raises(ValueError, match=r"caps.txt, line 2: byte 6 is not UTF-8 \(0xe9\)"):
        text.read_lines(path)
    path.write_bytes(path.read_bytes().replace(b"\xe9\n", b"e"))
    assert text.read_lines(path) == ["a café", "a cafe"]
    with pytest.raises(ValueError, match=r"caps.txt, line 4: the caption has no words"):
        text.tokenize_captions(["a", " "], path, first_line=3)


def test_glove_files_with_odd_lines(tmp_path):
    assert spellings("black-/white") == ("black-/white", "black")
    path = tmp_path / "glove.txt"
    path.write_bytes(b"the 1 2 3\n. . . 4 5 6\n\xff\xfe 0 0 0\ndog 7 8 9\n")
    vectors, found = load_glove(path, {"dog": 0, ".": 1, "the": 2})
    assert vectors.tolist() == [[7, 8, 9], [0, 0, 0], [1, 2, 3]] and found.tolist() == [1, 0, 1]
    path.write_bytes(b"the 1 2 3\ndog 7 8")
    with pytest.raises(ValueError, match=r"glove.txt, line 2: expected 3 numbers after 'dog'"):
        load_glove(path, {"dog": 0})
    path.write_bytes(b"the 1 2 3\ndog 7 8 x\n")
    with pytest.raises(ValueError, match="line 2: expected 3 numbers"):
        load_glove(path, {"dog": 0})
