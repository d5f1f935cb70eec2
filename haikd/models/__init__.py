"""The model zoo: plain Haiku functions, registered by name."""

from haikd.models import bert
from haikd.models import convnet
from haikd.models import gpt2
from haikd.models import llama
from haikd.models import mlp
from haikd.models import modernbert
from haikd.models import resnet
from haikd.models import t5_encoder
from haikd.models import vit
