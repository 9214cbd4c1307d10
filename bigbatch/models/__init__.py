"""Models by name: each builds itself from a task and the model settings, and says how large it is.

`bigbatch.models.kinds` knows what else can be a model: of Hugging Face, in a folder, any module in a file.
"""

from bigbatch.comm.registry import Registry

MODELS = Registry(
    "model",
    "bigbatch.models",
    {
        "decoder": "bigbatch.models.decoder:Decoder",
        "encoder-decoder": "bigbatch.models.encoder_decoder:EncoderDecoder",
        "encoder": "bigbatch.models.encoder:Encoder",
    },
    function="a class of torch.nn.Module, a function that makes a module, or a class derived from "
    "bigbatch.models.model.Model",
)
"""All models; other packages add theirs as entry points of the group "bigbatch.models"."""
