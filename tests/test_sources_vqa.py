"""Public questions about pictures: their layouts, and what is wrong with a folder."""

import json

import numpy as np
import pytest
from PIL import Image

from jcmr.data.sources import easy_vqa, vqa2
from jcmr.serve import knowledge


def write_easy(root, questions=None):
    (root / "answers.txt").write_text("yes\nno\nred\ncircle\n")
    for part, num in (("train", 12), ("test", 4)):
        (root / part / "images").mkdir(parents=True)
        asked = [["is there a circle?", ("yes", "no")[i % 2], i] for i in range(num)]
        asked += [["what color is the shape?", "red", i] for i in range(num)]
        (root / part / "questions.json").write_text(json.dumps(questions or asked))
        for i in range(num):
            pixels = np.full((16, 16, 3), i, np.uint8)
            Image.fromarray(pixels).save(root / part / "images" / f"{i}.png")


def test_easy_vqa_in_its_public_layout(tmp_path):
    write_easy(tmp_path)
    source = easy_vqa.make({"dir": str(tmp_path), "dev_rate": 0.25})
    train, dev, test = source.train, source.questions("dev"), source.questions("test")
    assert (len(train), len(dev.examples), len(test.examples)) == (18, 6, 8)
    assert not set(train.picture_ids) & set(dev.examples.picture_ids)
    assert sorted(set(test.kinds)) == ["colour", "yes_no"]
    example = train[0]
    assert example["image"][0, 0, 0] == train.picture_ids[0] and example["answer"].sum() == 1
    words = {number: word for word, number in source.vocabulary.items()}
    said = [words[i] for i in example["question"] if i > 2]
    assert " ".join(said) in ("is there a circle ?", "what color is the shape ?")
    assert [words[i] for i in source.answer_text[:, 0]] == ["yes", "no", "red", "circle"]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / "answers.txt").unlink(), "answers.txt. easy-VQA is MIT-licensed"),
        (lambda root: (root / "answers.txt").write_text("yes\nyes\n"), "every answer once"),
        (lambda root: (root / "train/questions.json").unlink(), "git clone"),
        (lambda root: (root / "train/questions.json").write_text("[[1"), "no whole JSON"),
        (lambda root: (root / "test/questions.json").write_text("{}"), "must be a list"),
        (
            lambda root: (root / "test/questions.json").write_text('[["a?", "yes", "1"]]'),
            r"entry 0: expected \[question, answer, image id\]",
        ),
        (
            lambda root: (root / "test/questions.json").write_text('[["a?", "maybe", 1]]'),
            "'maybe' is not in answers.txt",
        ),
        (lambda root: (root / "test/images/3.png").unlink(), "3.png, though questions"),
        (lambda root: (root / "test/images/3.png").write_bytes(b"x"), "3.png cannot be read"),
    ],
)
def test_easy_vqa_says_what_is_wrong(harm, words, tmp_path):
    write_easy(tmp_path)
    harm(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        easy_vqa.make({"dir": str(tmp_path)})


def test_missing_data_is_named():
    for source, words in ((easy_vqa, "easy-VQA"), (vqa2, "visualqa.org")):
        with pytest.raises(FileNotFoundError, match=f"config.data.dir is not set.*{words}"):
            source.make({})


def write_vqa2(root):
    """Two pictures to train on, one held out, one to test; the official fields and more."""
    for part, pictures in (("train2014", [9, 25, 30]), ("val2014", [42])):
        questions, notes = [], []
        for picture in pictures:
            for k in range(2):
                key = picture * 1000 + k
                text = ("What color is it?", "How many?")[k]
                questions.append({"image_id": picture, "question": text, "question_id": key})
                people = (["red"] * 7 + ["Dark  Red"] * 2 + ["odd"], ["2"] * 10)[k]
                notes.append(
                    {
                        "question_id": key,
                        "image_id": picture,
                        "question_type": "what",
                        "answer_type": ("other", "number")[k],
                        "multiple_choice_answer": ("red" if picture != 9 else "dark red", "2")[k],
                        "answers": [
                            {"answer": a, "answer_confidence": "yes", "answer_id": i + 1}
                            for i, a in enumerate(people)
                        ],
                    }
                )
        name = root / f"v2_OpenEnded_mscoco_{part}_questions.json"
        name.write_text(json.dumps({"license": {}, "questions": questions}))
        (root / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": notes}))
        values = np.asarray(pictures, np.float16)[::-1, None, None] * np.ones((1, 3, 5), np.float16)
        np.save(root / f"{part}.npy", values)
        (root / f"{part}_ids.txt").write_text("".join(f"{i}\n" for i in pictures[::-1]))
    captions = [
        {"image_id": i, "id": i, "caption": f" A red thing {i}."} for i in (9, 25, 25, 42, 77)
    ]
    (root / "captions.json").write_text(json.dumps({"annotations": captions}))


def make_vqa2(root, **options):
    files = {"dir": str(root), "features": str(root), "captions": (str(root / "captions.json"),)}
    return vqa2.make({**files, "dev_rate": 0.34, **options})


def test_vqa2_in_its_official_files(tmp_path):
    write_vqa2(tmp_path)
    source = make_vqa2(tmp_path)
    assert source.answers == ["2", "red", "dark red"]
    test = source.questions("test")
    worth = test.truths["captions"].take(np.arange(2))["answer"]
    np.testing.assert_allclose(worth, [[0, 1, 0.6], [1, 0, 0]], atol=1e-6)
    assert list(test.kinds) == ["other", "number"] and test.texts[1] == "How many?"
    train = source.train
    assert len(train) == 4 and len(source.questions("dev").examples) == 2
    for i in range(4):  # the features of its own picture, though stored in another order
        assert (train[i]["regions"] == train.picture_ids[i]).all()
    state = source.knowledge("captions")
    own = knowledge.own_captions(test.examples, np.arange(2), state)
    assert own == [[3], [3]]
    assert state.captions[3] == "A red thing 42."
    words = {number: word for word, number in source.vocabulary.items()}
    assert [words[i] for i in source.answer_text[2]] == ["dark", "red"]
    assert make_vqa2(tmp_path, num_answers=1).answers == ["2"]


def edit(name, change):
    def harm(root):
        content = json.loads((root / name).read_text())
        change(content)
        (root / name).write_text(json.dumps(content))

    return harm


NOTES = "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda root: (root / NOTES).unlink(), "VQA 2.0 come from"),
        (lambda root: (root / NOTES).write_text("[]"), "no list 'annotations'"),
        (edit(NOTES, lambda c: c["annotations"][1].pop("answers")), "entry 1: 'answers' is None"),
        (
            edit(NOTES, lambda c: c["annotations"][0].update(question_id=5)),
            "has no question 5",
        ),
        (lambda root: (root / "val2014.npy").unlink(), "Features come from a detector"),
        (lambda root: (root / "val2014.npy").write_bytes(b"x"), "no whole .npy file"),
        (lambda root: (root / "val2014_ids.txt").write_text("41\n"), "lacks 2 pictures"),
        (lambda root: (root / "val2014_ids.txt").write_text("41\n42\n"), "2 ids"),
        (lambda root: (root / "val2014_ids.txt").write_text("x\n"), "line 1: 'x' is no picture id"),
    ],
)
def test_vqa2_says_what_is_wrong(harm, words, tmp_path):
    write_vqa2(tmp_path)
    harm(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=words):
        make_vqa2(tmp_path)
