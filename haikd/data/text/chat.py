"""Chats for language models; only the answers are learned."""

from collections import Counter
from collections.abc import Iterator, Mapping
import functools
import hashlib
from typing import Any, NamedTuple, Optional

import numpy as np

from haikd.core import registry
from haikd.data import reading as reading_lib
from haikd.data import source
from haikd.data.text import answers as answers_lib
from haikd.data.text import chat_process
from haikd.data.text import chat_template as chat_template_lib
from haikd.data.text import framing
from haikd.data.text import learned
from haikd.data.text import messages as messages_lib
from haikd.data.text import overlap
from haikd.data.text import packing
from haikd.data.text import render_chats
from haikd.data.text import shards
from haikd.data.text import text_files
from haikd.data.text import text_prepared
from haikd.data.text import text_records
from haikd.data.text import text_tokenizers
from haikd.data.text import tokenizer as tokenizer_lib

# Statistics.
_APART, _CUT, _LOST, _DATED, _OTHER_STOP, _CROSSING, _EMPTY = (
    'apart', 'cut', 'lost', 'dated', 'other_stop', 'crossing', 'empty')

_OPTIONS = 'config.data.options'

_Rendered = tuple[text_records.Record, list[render_chats.Row]]  # A record's.


class _Chats(NamedTuple):
  """How a chat becomes rows."""

  tokenizer: tokenizer_lib.Tokenizer
  template: str
  length: int
  fields: messages_lib.Fields
  padding: str
  variables: Mapping[str, Any]
  pad: int
  end: int
  is_stop: np.ndarray

  def recipe(self) -> shards.Recipe:
    # The tokenizer's digest, which is in the key as well, is not of this.
    template = hashlib.sha256(self.template.encode()).hexdigest()
    options = dict(
        self.fields._asdict(), length=self.length, padding=self.padding,
        template=template, variables=self.variables, pad=self.pad,
        end=self.end)
    return shards.Recipe('chat', options, packing.row_dtype(self.length),
                         self._rows, notices=self._notices(),
                         adds_special_tokens=False, ends=(self.end,))

  def _rows(self, batches: shards.Batches,
            counts: Counter) -> Iterator[np.ndarray]:
    with chat_process.start(self.template, self.variables) as process:
      # One thread waits for the process, another tokenises.
      rendered = overlap.one_ahead(
          functools.partial(self._render, process), batches)
      for encoded, statistics in overlap.one_ahead(self._encode, rendered):
        counts.update(statistics)
        for record, rows in encoded:
          for _, answers in text_records.usable(
              [record], functools.partial(answers_lib.find, rows, self.is_stop),
              counts):
            for (_, whole), spans in zip(rows, answers):
              yield from self._row(whole, spans, counts)

  def _render(self, process: chat_process.ChatProcess,
              batch: list[text_records.Record]
              ) -> tuple[list[_Rendered], Counter]:
    """Returns chats as rows of text, and statistics of them."""
    rendered: list[_Rendered] = []
    counts: Counter = Counter()
    render = lambda record: process.render(
        messages_lib.read(record, self.fields))
    for record, (rows, is_dated) in text_records.usable(batch, render, counts):
      rendered.append((record, rows))
      counts[_APART] += len(rows) > 1
      counts[_DATED] += is_dated
    return rendered, counts

  def _encode(
      self, batch: tuple[list[_Rendered], Counter]
  ) -> tuple[list[tuple[text_records.Record, list[answers_lib.Encoded]]],
             Counter]:
    """Returns the rows of each record with their ids."""
    rendered, counts = batch
    spans = iter(learned.spans_of(
        self.tokenizer, [row.text for _, rows in rendered for row in rows]))
    return [(record, list(zip(rows, spans))) for record, rows in rendered
            ], counts

  def _row(self, whole: learned.Spans, answers: list[answers_lib.Answer],
           counts: Counter) -> Iterator[np.ndarray]:
    """Yields a row, unless it is cut before there is anything to learn."""
    is_learned = np.zeros(len(whole.ids), bool)
    for begin, first, stop in answers:
      is_learned[first:stop + 1] = True
      counts[_CROSSING] += whole.begins_before(first, begin)
      counts[_EMPTY] += first == stop
      counts[_OTHER_STOP] += bool(whole.ids[stop] != self.end)
    counts['tokens'] += len(whole.ids)
    if not is_learned[1:self.length].any():
      counts[_LOST] += 1
      return
    counts[_CUT] += len(whole.ids) > self.length
    yield learned.row(
        whole.ids[:self.length], is_learned[:self.length], self.length,
        pad=self.pad, padding=self.padding)

  def _notices(self) -> dict[str, str]:
    eos = self.tokenizer.token_of(self.end)
    return {
        _APART:
        'chats have answers that the chat template writes differently once the '
        'chat goes on; the chat up to each of them is a row of its own.',
        _CROSSING:
        'answers begin within a token, which is learned with them.',
        _EMPTY:
        'answers are empty: all that is learned is to stop.',
        _OTHER_STOP:
        f'answers end with another token than {eos!r}, which whoever generates '
        f'has to stop at. {_OPTIONS}.eos names the token that ends texts.',
        _DATED:
        'chats have the day of their preparation in them, since the chat '
        f'template writes it. {_OPTIONS}.template_options may fix it, as '
        "dict(date_string='26 Jul 2024') does for Llama 3.",
        _CUT:
        f'chats lose their end, beyond {self.length} tokens: '
        f'{_OPTIONS}.length.',
        _LOST:
        f'chats are left out, since their first {self.length} tokens have '
        f'nothing to learn: {_OPTIONS}.length.',
    }

  def expand(self, rows: np.ndarray) -> Mapping[str, np.ndarray]:
    return learned.expand(rows)


def _stops(tokenizer: tokenizer_lib.Tokenizer, end: int) -> np.ndarray:
  """Returns for each id whether it may end an answer: special ones, `end`."""
  special = tokenizer.special
  added = {token['id'] for token in tokenizer.definition.get('added_tokens', ())
           if token['special']}
  is_stop = np.zeros(tokenizer.size, bool)
  is_stop[[end, *(added - {special.bos, special.unk, special.mask})]] = True
  return is_stop


@registry.register_dataset(spec=learned.spec, tasks=('causal_lm',))
def chat(split: str,
         *,
         tokenizer: str,
         length: int,
         messages: str = 'messages',
         prompt: str = 'prompt',
         completion: str = 'completion',
         chat_template: Optional[str] = None,
         template_options: Optional[Mapping[str, Any]] = None,
         padding: str = 'right',
         vocabulary: Optional[int] = None,
         eos: Optional[str] = None,
         bos: Optional[str] = None,
         pad: Optional[str] = None,
         tfds: Optional[str] = None,
         source_dir: Optional[str] = None,
         data_dir: Optional[str] = None,
         reading: reading_lib.Reading = reading_lib.Reading()
         ) -> source.Source:
  """Chats, written by the tokenizer's chat template; answers are learned.

  Files are as for `text`, of the kinds that have fields. A record has a list of
  messages, `dict(role='user', content='…')`, in one field; or in two, of which
  the first is not learned. The ids are those of `apply_chat_template` in
  transformers. What the assistant says is learned, up to the special token that
  ends it, which must be there; an empty `<think>` block before it is not. A
  template may write an answer differently once the chat goes on, without its
  thoughts for instance: the chat up to this answer is then a row of its own.
  Where a template has `{% generation %}`, what is learned is what it marks.

  A chat that is longer than a row loses its end. Tools are refused. The
  template is rendered in a process of its own, with limits of time and memory.

  Args:
    split: 'train', 'validation' or another split of the data set, or a slice of
      one.
    tokenizer: as `haikd.data.text.tokenizer.load` takes it.
    length: N, the number of tokens in a row.
    messages: the field of all messages.
    prompt: the field of messages that are not learned, where `messages` is
      missing.
    completion: the field of the messages that follow `prompt`.
    chat_template: a template of Jinja2, its file, a tokenizer whose template it
      is, or the name of one of the tokenizer's templates; None for the
      tokenizer's.
    template_options: variables of the template, such as
      dict(enable_thinking=False). They are its defaults in an export.
    padding: the side of the padding, 'right' or 'left'.
    vocabulary: V is at least this.
    eos: the token that ends texts, `eos_token` in the template; None for the
      tokenizer's.
    bos: likewise `bos_token`.
    pad: the token that fills rows up; None for the tokenizer's.
    tfds: the name of the data set in tfds; it must be prepared in `data_dir`.
    source_dir: the folder of the files.
    data_dir: the folder of prepared files; None for that of tfds.
    reading: the limits of its files, and what is done about broken records.

  Returns:
    A Source of `tokens`, `mask`, `label` and `target_mask`, which is true where
    a token of an answer is predicted.

  Raises:
    ConfigError: an option out of its range, a token that the tokenizer does not
      have, or no chat template.
    DataError: files, a tokenizer, a template or messages that cannot be used,
      or an unknown or empty split.
  """
  packing.check_options(length, padding)
  fields = messages_lib.Fields(messages, prompt, completion)
  location = text_files.Location(
      source_dir, data_dir, tfds, 'file', messages, fields.column_groups(),
      reading=reading)
  choice = framing.Choice(eos, bos, pad)

  def with_option(loaded: tokenizer_lib.Tokenizer) -> tokenizer_lib.Tokenizer:
    own = chat_template_lib.choose(loaded, chat_template)
    template = chat_template_lib.with_defaults(own, choice, template_options)
    if chat_template is None and template == own:
      return loaded
    # It is saved beside the data, and an export takes it from there.
    return loaded.with_template(template)

  def make_format(
      loaded: tokenizer_lib.Tokenizer,
      corpus: text_files.Corpus) -> text_prepared.RowFormat:
    del corpus
    frame = framing.build(loaded, choice)
    end = framing.end_id(loaded, eos)
    return _Chats(
        loaded, chat_template_lib.choose(loaded), length, fields, padding,
        chat_template_lib.variables(loaded, choice, template_options),
        frame.pad, end, _stops(loaded, end))

  return text_prepared.open_rows(
      make_format, tokenizer, location, split,
      adapt=with_option,
      num_classes=lambda loaded: text_tokenizers.vocabulary_size(
          loaded, vocabulary))
