"""Models by name: each builds itself from a task and the model settings, and says how large it is."""

from bigbatch.comm.registry import Registry

MODELS = Registry(
    "model",
    "bigbatch.models",
    {
        "decoder": "bigbatch.models.decoder:Decoder",
        "encoder-decoder": "bigbatch.models.encoder_decoder:EncoderDecoder",
        "encoder": "bigbatch.models.encoder:Encoder",
    },
    base="bigbatch.models.model:Model",
)
"""All models; other packages add theirs as entry points of the group "bigbatch.models"."""
