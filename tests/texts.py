"""Made-up texts, and tiny language models with random weights in the layout of their libraries, for the tests of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

TOPICS = {
    "sport": ["goal", "match", "team", "coach", "league", "score", "player", "cup"],
    "money": ["bank", "price", "market", "shares", "profit", "loan", "trade", "cash"],
    "space": ["rocket", "orbit", "moon", "planet", "star", "launch", "comet", "crew"],
}
FILLERS = ["the", "a", "of", "in", "was", "with", "new", "old", "after", "before", "said", "very"]


def sentences(count: int, seed: int = 0) -> pd.DataFrame:
    """Texts of nine words in a column `text`, four of them of the topic in the column `topic`."""
    rng = np.random.default_rng(seed)
    topics = np.array(list(TOPICS))[np.arange(count) % len(TOPICS)]
    words = [rng.permutation([*rng.choice(TOPICS[topic], 4), *rng.choice(FILLERS, 5)]) for topic in topics]
    return pd.DataFrame({"text": [" ".join(each) for each in words], "topic": topics})


def pairs(count: int, seed: int = 0) -> pd.DataFrame:
    """Pairs of texts in the columns `first` and `second`, with about how many topic words they share as `score`."""
    rng = np.random.default_rng(seed)
    frame = sentences(count, seed)
    rows = []
    for text, topic in zip(frame["text"], frame["topic"], strict=True):
        same = int(rng.integers(0, 5))
        others = [word for name in TOPICS if name != topic for word in TOPICS[name]]
        words = [*rng.choice(TOPICS[topic], same), *rng.choice(others, 4 - same), *rng.choice(FILLERS, 5)]
        rows.append({"first": text, "second": " ".join(rng.permutation(words)), "score": round(same + rng.uniform(0, 0.5), 2)})
    return pd.DataFrame(rows)


def vocabulary() -> list[str]:
    """The tokens of the tiny models."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = [word for topic in TOPICS.values() for word in topic]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLERS, *words, *letters[1:], *(f"##{letter}" for letter in letters)]


def tokenizer(folder: Path, *, padding: bool = True) -> Any:
    """A word-piece tokenizer of the library, saved into the folder."""
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    made = BertTokenizerFast(vocab={word: at for at, word in enumerate(vocabulary())}, model_max_length=32)
    made.save_pretrained(folder)
    if not padding:
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / name).exists():
                said = json.loads((folder / name).read_text())
                said["pad_token"] = None
                (folder / name).write_text(json.dumps(said))
    return made


def configuration(**more: Any) -> Any:
    """A BERT of two layers and 32 numbers."""
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 40}
    return BertConfig(vocab_size=len(vocabulary()), pad_token_id=0, **sizes, **more)


def classifier(folder: Path, labels: list[str], *, padding: bool = True, head: bool = True, seed: int = 0) -> Path:
    """A sequence classifier with random weights; without `head`, the encoder alone is saved."""
    from transformers import BertForSequenceClassification, BertModel

    tokenizer(folder, padding=padding)
    names = dict(enumerate(labels))
    said = configuration(num_labels=len(labels), id2label=names, label2id={name: at for at, name in names.items()})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(said) if head else BertModel(said)
    model.save_pretrained(folder)
    return folder


def language_tokenizer(folder: Path, corpus: list[str], *, padding: bool = False) -> Any:
    """A byte-level tokenizer learned on the spot, in the layout of GPT-2: without a padding token unless it is asked for."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    marks = ["<end>", *(["<pad>"] if padding else [])]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=marks, show_progress=False, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(corpus, trainer)
    named = {"pad_token": "<pad>"} if padding else {}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", bos_token="<end>", model_max_length=64, **named)
    wrapped.save_pretrained(folder)
    return wrapped


def language_model(
    folder: Path, corpus: list[str], *, kind: str = "gpt2", padding: bool = False, steps: int = 0, seed: int = 0, headless: bool = False
) -> Path:
    """A causal language model (`gpt2` or `llama`) with random weights, or trained for some steps on these texts."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    words = language_tokenizer(folder, corpus, padding=padding)
    marks = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": words.pad_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=len(words), n_positions=64, n_embd=32, n_layer=2, n_head=2, **marks))
        else:
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes, **marks))
        if steps:
            _train_language(model, words, corpus, steps)
    (model.transformer if headless else model).save_pretrained(folder)
    return folder


def _train_language(model: Any, words: Any, corpus: list[str], steps: int) -> None:
    rows = [torch.tensor(words(text)["input_ids"][:64]) for text in corpus]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(steps):
        some = tokens[torch.randint(len(tokens), (32,))]
        loss = model(input_ids=some.clamp_min(0), attention_mask=(some >= 0).long(), labels=some).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def encoder(folder: Path, seed: int = 0) -> Path:
    """A sentence encoder with random weights: mean of the last states, as MiniLM has it."""
    from transformers import BertModel

    tokenizer(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(configuration()).save_pretrained(folder)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}))
    return folder
