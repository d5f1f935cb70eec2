"""Writes the token ids of chats, as transformers has them.

Run it where transformers is installed:

  python tests/data/text/make_chat_goldens.py

The templates have the shapes of those of well-known models, which are longer.
"""

import json
import pathlib
import tempfile

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

GOLDEN = pathlib.Path(__file__).with_name('chat_goldens.json')

CHATML = """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
'<|im_end|>' }}
  {% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Llama 3: the token that begins texts, trimmed contents, no line break after an
# answer.
LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + \
message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Qwen 2.5: a system message of its own.
QWEN2 = """\
{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Qwen 3: thoughts, or an empty block of them, in the last answer only.
QWEN3 = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
{%- set content = message.content %}
{%- set thoughts = '' %}
{%- if '</think>' in content %}
{%- set thoughts = content.split('</think>')[0].split('<think>')[-1] %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.index0 > ns.last %}
{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# Mistral: turns have to alternate, and nothing invites an answer.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant.') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- '[INST] ' + message.content + ' [/INST]' }}
{%- else %}
{{- ' ' + message.content + eos_token }}
{%- endif %}
{%- endfor %}
"""

# Gemma 2: no system message, and a role of another name.
GEMMA2 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
{{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + \
'<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

# Zephyr: roles are text, not special tokens.
ZEPHYR = """\
{% for message in messages %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

# What is learned, marked by the template itself.
MARKED = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{{- '\\n' }}
{%- else %}
{{- message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
"""

_PLAIN = [
    dict(role='user', content='Hi there'),
    dict(role='assistant', content='Hello.\n\nThe café is open'),
    dict(role='user', content='Really?'),
    dict(role='assistant', content='Yes'),
]
_SYSTEM = [dict(role='system', content='Be kind'), *_PLAIN]
_THOUGHTS = [*_PLAIN[:3], dict(
    role='assistant', content='<think>\nIt is.\n</think>\n\nYes')]

# {case: (template, messages, bos, eos, other special tokens, pieces)}; with
# pieces, the tokenizer is as SentencePiece has it.
CASES = dict(
    chatml=(CHATML, _SYSTEM, None, '<|im_end|>', ['<|im_start|>'], False),
    llama3=(LLAMA3, _SYSTEM, '<|begin_of_text|>', '<|eot_id|>',
            ['<|start_header_id|>', '<|end_header_id|>'], False),
    qwen2=(QWEN2, _PLAIN, None, '<|im_end|>', ['<|im_start|>'], False),
    qwen3=(QWEN3, _PLAIN, None, '<|im_end|>', ['<|im_start|>'], False),
    qwen3_thoughts=(QWEN3, _THOUGHTS, None, '<|im_end|>', ['<|im_start|>'],
                    False),
    mistral=(MISTRAL, _PLAIN, '<s>', '</s>', ['[INST]', '[/INST]'], True),
    gemma2=(GEMMA2, _PLAIN, '<bos>', '<eos>',
            ['<start_of_turn>', '<end_of_turn>'], False),
    zephyr=(ZEPHYR, _SYSTEM, '<s>', '</s>', [], True),
    marked=(MARKED, _SYSTEM, None, '<|im_end|>', ['<|im_start|>'], False))


def write_tokenizer(case, folder):
  """Writes the tokenizer of a case, with its template."""
  template, _, bos, eos, special, pieces = CASES[case]
  special = [token for token in (bos, eos, *special) if token]
  made = (_pieces if pieces else _bytes)(special)
  if bos:
    made.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', special_tokens=[(bos, made.token_to_id(bos))])
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / 'tokenizer.json'))
  (folder / 'tokenizer_config.json').write_text(json.dumps(dict(
      tokenizer_class='PreTrainedTokenizerFast', bos_token=bos, eos_token=eos,
      chat_template=template)))


def _bytes(special):
  """Returns byte-level BPE."""
  merges = [('Ċ', 'Ċ'), ('Ġ', 't'), ('h', 'e'), ('Ġ', 'i'), ('Y', 'e'),
            ('Ye', 's'), ('.', 'ĊĊ')]
  tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()),
            *(left + right for left, right in merges)]
  made = tokenizers.Tokenizer(models.BPE(
      {token: i for i, token in enumerate(tokens)}, merges))
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  made.add_special_tokens(special)
  return made


def _pieces(special):
  """Returns BPE that puts a blank before a text."""
  merges = [('▁', 'Y'), ('▁Y', 'e'), ('▁', 'H'), ('e', 'l')]
  tokens = ['<unk>', *special, *(f'<0x{i:02X}>' for i in range(256)), '▁',
            *'abcdefghijklmnopqrstuvwxyzBHIRTY?.|<>é',
            *(left + right for left, right in merges)]
  made = tokenizers.Tokenizer(models.BPE(
      {token: i for i, token in enumerate(tokens)}, merges, unk_token='<unk>',
      byte_fallback=True, fuse_unk=True))
  made.normalizer = normalizers.Sequence([
      normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
  made.decoder = decoders.Sequence([
      decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()])
  made.add_special_tokens(['<unk>', *special])
  return made


def expected():
  """Returns {case: ids of the whole chat, and up to its first answer}."""
  import transformers
  golden = {}
  for case, (_, messages, *_) in CASES.items():
    with tempfile.TemporaryDirectory() as folder:
      write_tokenizer(case, pathlib.Path(folder))
      loaded = transformers.AutoTokenizer.from_pretrained(folder)
    first = next(i for i, m in enumerate(messages) if m['role'] == 'assistant')
    golden[case] = [
        loaded.apply_chat_template(
            messages[:end], tokenize=True, return_dict=False)
        for end in (len(messages), first + 1)]
    if case == 'marked':
      golden['marks'] = loaded.apply_chat_template(
          messages, tokenize=True, return_dict=True,
          return_assistant_tokens_mask=True)['assistant_masks']
  return golden


def main():
  lines = [f'"{case}": {json.dumps(ids)}' for case, ids in expected().items()]
  GOLDEN.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  main()
