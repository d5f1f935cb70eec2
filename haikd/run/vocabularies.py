"""The ids that teacher, student and data have in common."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Optional

from haikd import config as config_lib
from haikd import interop
from haikd.core import checks
from haikd.core import notes
from haikd.core import registry
from haikd.core import signatures
from haikd.data.text import affixes
from haikd.data.text import chat_template
from haikd.data.text import shared_ids
from haikd.data.text import text_tokenizers
from haikd.run import two_tokenizers

_TOKENIZER, _VOCABULARY = 'tokenizer', 'vocabulary'


class _Shared(NamedTuple):
  """What the tokenizers of networks and data have in common.

  Attributes:
    path: of the one with the fewest tokens; None without tokenizers.
    size: the number of its tokens; None if it was not needed.
    agree: whether none of them has further tokens.
  """

  path: Optional[str] = None
  size: Optional[int] = None
  agree: bool = True


def resolve(config: config_lib.ConfigDict,
            described: Mapping[str, interop.Pretrained]) -> None:
  """Fills in the tokenizer and the vocabulary of the data.

  The data set gets what it accepts and the config does not give: the tokenizer
  of the teacher or else of the student, and as many classes as the networks
  have logits. Where networks have different numbers of logits, since their
  tables are padded to other sizes, or where one tokenizer has tokens beyond the
  other's, the classes are the ids that all tokenizers have, and `used_classes`
  limits the networks to them. Encoders of texts may have a tokenizer each, and
  the data then gets both.

  Args:
    config: a config whose networks are resolved; it is changed.
    described: the pretrained networks, by role.

  Raises:
    ConfigError: the tokenizers are not one, or the number of classes is not
      known.
    DataError: a tokenizer cannot be read.
  """
  name = config.data.name
  if name not in registry.datasets.names():
    return
  accepted = signatures.option_names(registry.datasets[name].function)
  given = config_lib.plain(config.data.options)
  tokenizers = {role: pretrained.tokenizer
                for role, pretrained in described.items()
                if pretrained.tokenizer}
  of_student = two_tokenizers.of_student(config, tokenizers)
  if of_student:
    tokenizers.pop('student', None)
  paths = {f'config.{role}.init': path for role, path in tokenizers.items()}
  if _TOKENIZER in accepted and given.get(_TOKENIZER):
    paths[f'config.data.options.{_TOKENIZER}'] = given[_TOKENIZER]
  shared = _share(paths)
  _check_given(given.get(_TOKENIZER), shared)
  decided: dict[str, Any] = {}
  if of_student:
    decided[two_tokenizers.OPTION] = of_student
  if _TOKENIZER in accepted and shared.path:
    decided[_TOKENIZER] = shared.path
  chosen = given.get(_TOKENIZER) or decided.get(_TOKENIZER)
  if 'eos' in accepted and given.get('eos') is None:
    _say_ends(chosen, paths)
  if 'chat_template' in accepted and given.get('chat_template') is None:
    if (template := _template(chosen, paths)) is not None:
      decided['chat_template'] = template
  # A chat template writes special tokens itself.
  if (_TOKENIZER in accepted and 'chat_template' not in accepted and
      given.get('bos') is None and
      given.get('add_special_tokens') is not False):
    _say_affixes(chosen, paths, accepted)
  if _VOCABULARY in accepted:
    sizes = {role: size for role in described
             if (size := _logits(config[role])) is not None}
    classes = None
    # Only the data knows how many tokens pruning leaves.
    if sizes and not given.get('prune'):
      classes = given.get(_VOCABULARY) or _classes(sizes, shared)
      decided[_VOCABULARY] = classes
    for role, size in sizes.items():
      _limit(config[role], size, classes)
    if classes is not None:
      _say_limits(sizes, classes)
  with config.unlocked():
    config.data.options = {**decided, **given}


def _share(paths: Mapping[str, str]) -> _Shared:
  """Compares the tokenizers that fields of the config give."""
  if not paths:
    return _Shared()
  first_field, first = next(iter(paths.items()))
  if len(set(paths.values())) == 1:
    return _Shared(first)
  tokenizers = {path: text_tokenizers.load(path) for path in paths.values()}
  for field, path in paths.items():
    try:
      shared_ids.count(tokenizers[first], tokenizers[path])
    except ValueError as err:
      raise checks.ConfigError(
          f'{field} must have the tokenizer of {first_field}, since logits are '
          f'compared token by token; got {path}, which differs from {first}: '
          f'{err}. Choose weights of one family, or start the student without '
          'init.') from err
  sizes = {path: tokenizer.size for path, tokenizer in tokenizers.items()}
  smallest = min(sizes, key=sizes.__getitem__)  # The first of equal ones.
  agree = len(set(sizes.values())) == 1
  if not agree:
    notes.say(f'texts are tokenised by {smallest}, whose {sizes[smallest]} '
              'tokens are a part of those of the other tokenizer.')
  return _Shared(smallest, sizes[smallest], agree)


def _check_given(path: Optional[str], shared: _Shared) -> None:
  """Refuses a tokenizer of the data with tokens that a network lacks."""
  if path is None or shared.size is None:
    return
  size = text_tokenizers.load(path).size
  if size > shared.size:
    raise checks.ConfigError(
        f'config.data.options.{_TOKENIZER} must have no tokens beyond those of '
        f'the networks; got {path} with {size}, where {shared.path} has '
        f'{shared.size}. Leave it out, and the smaller one is taken.')


def _say_ends(chosen: Optional[str], paths: Mapping[str, str]) -> None:
  """Says which token ends texts, if the tokenizers have different ones."""
  if chosen is None or len(set(paths.values())) == 1:
    return
  ends = {path: _end(path) for path in paths.values()}
  others = {path: end for path, end in ends.items() if end != ends[chosen]}
  if others:
    path, end = next(iter(others.items()))
    notes.say(f'texts end with {ends[chosen]!r}, the eos of {chosen}; that of '
              f'{path} is {end!r}. config.data.options.eos chooses another.')


def _template(chosen: Optional[str],
              paths: Mapping[str, str]) -> Optional[str]:
  """Returns the tokenizer whose chat template the data gets, if not its own.

  A base student has none, and its instruct teacher has one.

  Raises:
    ConfigError: the template writes tokens that the tokenizer of the data does
      not have.
  """
  named = {path: found for path in paths.values() if (
      found := chat_template.templates(text_tokenizers.load(path)))}
  if chosen in named:
    others = [path for path in named if named[path] != named[chosen]]
    if others:
      notes.say(
          f'chats are written by the chat template of {chosen}; {others[0]} '
          'has another. config.data.options.chat_template, set to it, takes '
          'that.')
    return None
  if chosen is None or not named:
    return None
  path = next(iter(named))
  loaded, other = (text_tokenizers.load(each) for each in (chosen, path))
  template = chat_template.choose(other)
  missing = [token['content']
             for token in other.definition.get('added_tokens', ())
             if token['content'] in template and
             loaded.id_of(token['content']) is None]
  if missing:
    raise checks.ConfigError(
        f'the tokenizer {chosen} must have the tokens that the chat template '
        f'of {path} writes; got none of {checks.abbreviate(missing)}. Give its '
        'network the other tokenizer, with `resize_token_embeddings` of '
        'transformers; or set config.data.options.chat_template to a template '
        'without them.')
  notes.say(f'chats are written by the chat template of {path}, since {chosen} '
            'has none. config.data.options.chat_template chooses another.')
  return path


def _say_affixes(chosen: Optional[str], paths: Mapping[str, str],
                 accepted: Collection[str]) -> None:
  """Says which special tokens texts get, if tokenizers add different ones."""
  if chosen is None or len(set(paths.values())) == 1:
    return
  remedy = (' config.data.options.bos chooses another.' if 'bos' in accepted
            else '')
  # What ends texts is said already where the option eos chooses it.
  verbs = ('begin',) if 'eos' in accepted else ('begin', 'end')
  added = {path: _added(path) for path in paths.values()}
  for verb, ours, *others in zip(verbs, added[chosen], *added.values()):
    for path, theirs in zip(added, others):
      if theirs != ours:
        notes.say(f'texts {verb} with {ours}, as {chosen} has it; with {path}, '
                  f'it would be {theirs}.{remedy}')


def _added(path: str) -> list[str]:
  """Returns the special tokens before and after texts, for messages."""
  tokenizer = text_tokenizers.load(path)
  return [', '.join(repr(tokenizer.token_of(i)) for i in ids) or
          'no special token' for ids in affixes.of(tokenizer)]


def _end(path: str) -> Optional[str]:
  """Returns the token that ends texts for a tokenizer."""
  tokenizer = text_tokenizers.load(path)
  end = tokenizer.special.eos
  return None if end is None else tokenizer.token_of(end)


def _logits(network: config_lib.ConfigDict) -> Optional[int]:
  """Returns how many tokens a network predicts; None if it predicts none."""
  options = network.options
  if options.get('head') is not None:  # An encoder.
    return options.get('vocabulary') if options.head == 'masked_lm' else None
  return options.get('num_classes')


def _classes(sizes: Mapping[str, int], shared: _Shared) -> int:
  """Returns the number of ids that networks are compared over."""
  if len(set(sizes.values())) == 1 and shared.agree:
    return next(iter(sizes.values()))
  if shared.path is None:
    listed = ', '.join(f'config.{role} has {size}'
                       for role, size in sizes.items())
    raise checks.ConfigError(
        f'config.data.options.{_VOCABULARY} must be the number of tokens of '
        'the tokenizer, since networks have tables of different lengths, and '
        f'no tokenizer beside them; got None, where {listed}.')
  return shared.size or text_tokenizers.load(shared.path).size


def _limit(network, size, classes):
  """Limits a network to some of its logits, if it has more.

  A decoder with as many logits as the data has classes gets their number from
  the data.
  """
  if classes is not None and size > classes:
    if network.used_classes is None:
      network.used_classes = classes
  elif 'num_classes' in network.options:
    with network.unlocked():
      del network.options['num_classes']


def _say_limits(sizes, classes):
  larger = {role: size for role, size in sizes.items() if size > classes}
  if larger:
    first, *second = (f'{size} {{}}of the {role}'
                      for role, size in larger.items())
    listed = ' and the '.join((first.format('logits '),
                               *(text.format('') for text in second)))
    notes.say(f'of the {listed}, the first {classes} are used, which are those '
              'of the tokenizer; probabilities are normalised over them.')
