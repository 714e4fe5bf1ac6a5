"""A model of another architecture, loaded by transformers, with a smaller one as its draft: no file is needed."""

import torch
import transformers

import ouroboros

torch.manual_seed(0)


def gpt2(layers: int) -> transformers.GPT2LMHeadModel:  # in place of AutoModelForCausalLM.from_pretrained("...")
    ends = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(vocab_size=300, n_embd=64, n_layer=layers, n_head=4, **ends)
    return transformers.GPT2LMHeadModel(config).eval()


target, draft = gpt2(4), gpt2(1)
decoder = ouroboros.load(target, draft)  # backend="auto": native where it can be, else transformers' own forward
print(decoder.target.info)  # trees=True: this model was tried with token trees when it was loaded

result = decoder.generate([1, 2, 3], max_new_tokens=20)  # no tokenizer: token ids in, token ids out
own = target.generate(torch.tensor([[1, 2, 3]]), do_sample=False, max_new_tokens=20)
assert [1, 2, 3, *result.token_ids] == own[0].tolist()
print(result.token_ids, result.stats.acceptance_rate)
