"""Which choice of a task is the likeliest, by transformers alone."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hfpipe import models
from hfpipe.text.tokenizer import load_tokenizer


@torch.inference_mode()
def likeliest(folder, prompt, choices):
    """The place of the choice with the highest log-probability for each byte, after a prompt that ends with a token."""
    source, tokenizer = models.resolve(str(folder)), load_tokenizer(folder)
    kind = AutoModelForSeq2SeqLM if source.is_encoder_decoder else AutoModelForCausalLM
    model, found = kind.from_pretrained(folder).eval(), []
    for choice in choices:
        if source.is_encoder_decoder:
            before, (text, ids) = source.decoder_start, (choice.strip(), tokenizer.encode(prompt, True))
            whole = (*before, *tokenizer.encode(text, False))
            logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([whole])).logits[0]
        else:
            before, whole = (tokenizer.encode(text, False) for text in (prompt, prompt + choice))
            assert whole[: len(before)] == before
            logits = model(torch.tensor([whole])).logits[0]
        rows = logits.log_softmax(-1)
        nats = sum(float(rows[place - 1, whole[place]]) for place in range(len(before), len(whole)))
        found.append(nats / len(choice.strip().encode()))
    return found.index(max(found))
