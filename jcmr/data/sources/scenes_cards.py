"""Pictures of scenes and the cards of facts about them: what a retriever for questions learns from.

The pictures are those of `scenes_vqa`, which also has the options. Each comes with a card of one of
its objects, in any world, and with ordinary captions, which are nobody's: a picture is to find the
texts that state facts about what it shows before those that only describe it. The gallery of dev
and test are the cards of one world and all distractors, for pictures of held-out entities.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import numpy as jnp

from jcmr.core.types import Array, Relevance, RetrievalSplit
from jcmr.data.records import Arrays
from jcmr.data.scenes import questions as made
from jcmr.data.sources import scenes_vqa


def shows(images: Array, cards: Array) -> Array:
    """Which of images, by their entities [n, o], show that of which cards [m]."""
    return jnp.any(images[:, :, None] == cards, axis=1)


@dataclasses.dataclass(frozen=True)
class SceneCards:
    """Pictures with one card and ordinary captions each."""

    asked: scenes_vqa.SceneQuestions

    @functools.cached_property
    def train(self) -> Arrays:
        """Training pictures; `foreign` says which texts belong to none."""
        items = self.asked.items
        num, texts = items["text"].shape[:2]
        foreign = np.broadcast_to(np.arange(texts) > 0, (num, texts))
        columns = {name: items[name] for name in ("image", "text", "scene_code", "caption_code")}
        return Arrays({"id": np.arange(num, dtype=np.int32), **columns, "foreign": foreign})

    @property
    def info(self) -> dict[str, int]:
        """Sizes a model takes from the data."""
        return {"vocab_size": len(self.vocabulary)}

    @property
    def vocabulary(self) -> dict[str, int]:
        """Word -> id."""
        return self.asked.vocabulary

    def tokenize(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids of captions."""
        return self.asked.tokenize(captions)

    def retrieval(self, split: str) -> RetrievalSplit:
        """Pictures of entities that only this split has; relation `card`: states a fact of one."""
        items = scenes_vqa.load_items(split, self.asked.options)
        captions = self.asked.knowledge("index_a").captions
        rows = np.arange(len(captions))
        num = len(items["image"])
        shown = items["scene_code"][..., :3].astype(np.int32)
        entity = made.entity_id(*np.moveaxis(shown, -1, 0))
        shown = np.where(shown[..., 0] >= 0, entity, -2)
        return RetrievalSplit(
            split,
            {
                "image": Arrays({"image": items["image"], "id": np.arange(num, dtype=np.int32)}),
                "text": Arrays({"text": self.tokenize(captions), "id": rows.astype(np.int32)}),
            },
            {
                "card": Relevance(
                    shown.astype(np.int32),
                    made.card_entity(rows).astype(np.int32),
                    shows,
                )
            },
            {"captions": list(captions)},
        )


def make(cfg: Mapping[str, Any]) -> SceneCards:
    """The source of `config.data`.

    Raises:
      ValueError: an unknown key or value.
    """
    return SceneCards(scenes_vqa.make(cfg))
