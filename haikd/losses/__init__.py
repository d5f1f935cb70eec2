"""Losses: small pure functions on aligned arrays, one file per family."""

from haikd.losses.attention import attention_transfer
from haikd.losses.binary import binary_cross_entropy
from haikd.losses.binary import binary_kl
from haikd.losses.coarse import decoupled_kd
from haikd.losses.coarse import top_k_kl
from haikd.losses.dist import dist
from haikd.losses.divergences import kl_divergence
from haikd.losses.divergences import reverse_kl
from haikd.losses.embeddings import embedding_cosine
from haikd.losses.embeddings import embedding_matching
from haikd.losses.embeddings import similarity_distribution
from haikd.losses.features import feature_cosine
from haikd.losses.features import feature_matching
from haikd.losses.labels import cross_entropy
from haikd.losses.mixtures import jensen_shannon
from haikd.losses.mixtures import skewed_kl
from haikd.losses.register import get_loss
from haikd.losses.register import loss_names
from haikd.losses.register import register_loss
from haikd.losses.values import logit_mse
from haikd.losses.values import mean_absolute_error
from haikd.losses.values import mean_squared_error
from haikd.losses.variation import total_variation
from haikd.losses.variation import universal_logit
