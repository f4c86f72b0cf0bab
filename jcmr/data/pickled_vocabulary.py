"""Vocabularies that papers ship as Python pickles, read without running what is in them."""

import pickle
from pathlib import Path
from typing import Any


def load_pickled_vocabulary(path: str | Path) -> dict[str, Any]:
    """The attributes of a pickled `Vocabulary` object, or a pickled plain dict.

    Whatever module the class `Vocabulary` came from, an empty one stands in for it. Every other
    class or function that the file asks for is refused, so nothing of the file is executed.

    Raises:
      ValueError: the file asks for another class, is damaged, or holds something else.
    """

    class Vocabulary:
        """Takes the attributes, has no behaviour."""

    def reconstruct(*_: Any) -> Vocabulary:
        return Vocabulary()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if name == "Vocabulary":
                return Vocabulary
            # How protocols 0 and 1 spell "a new object of this class".
            if (module, name) == ("copy_reg", "_reconstructor"):
                return reconstruct
            if (module, name) in (("__builtin__", "object"), ("builtins", "object")):
                return Vocabulary
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no vocabulary")

    try:
        with open(path, "rb") as file:
            content = Unpickler(file, encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(
            f"The vocabulary {path} was not loaded: {error}. Only a pickled Vocabulary object or "
            f"a plain dict is accepted; a json file works as well."
        ) from None
    if isinstance(content, Vocabulary):
        content = vars(content)
    if not isinstance(content, dict):
        raise ValueError(
            f"The vocabulary {path} holds a {type(content).__name__}, not a vocabulary."
        )
    return content
