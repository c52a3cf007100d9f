"""Word vectors of the class names, from any word2vec file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from gensim.models.keyedvectors import KeyedVectors
from torch import Tensor

from askance.errors import ConfigError, DataError, did_you_mean


def class_vectors(path: Path, class_names: Sequence[str], words: Mapping[str, str]) -> Tensor:
    """The vectors of the classes in their order, float32 [K, n].

    Args:
        path: word2vec format; binary if it ends in .bin, else text.
        class_names: K names; each is looked up as it stands, then in lower case.
        words: {class name: word} for classes that the file knows by another word.

    Raises:
        ConfigError: the file cannot be read, or `words` names no class.
        DataError: a class has no vector; the message names it and the mapping option.
    """
    for name in words:
        if name not in class_names:
            raise ConfigError(f"word_vectors.words maps {name!r}, not a class: {did_you_mean(name, class_names)}")
    try:
        vectors = KeyedVectors.load_word2vec_format(str(path), binary=path.suffix == ".bin")
    except OSError as error:
        raise ConfigError(f"cannot read the word vectors {path}: {error.strerror or error}") from None
    except (ValueError, EOFError, IndexError) as error:
        raise ConfigError(f"{path} is not a word2vec file: {error}") from None
    rows = []
    for name in class_names:
        wanted = words.get(name, name)
        word = next((w for w in (wanted, wanted.lower()) if w in vectors), None)
        if word is None:
            raise DataError(
                f"class {name!r} has no vector in {path.name} (looked for {wanted!r}): "
                f'map it to a word that has one, [word_vectors] words = {{ "{name}" = "..." }}'
            )
        rows.append(vectors[word])
    found = torch.from_numpy(np.stack(rows)).float()
    if not bool(torch.isfinite(found).all()) or bool((found.std(dim=1) == 0).any()):
        raise DataError(f"{path.name}: a class's vector is constant or holds NaN: nothing correlates with it")
    return found
