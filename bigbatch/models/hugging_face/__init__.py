"""Models of Hugging Face's library transformers.

* `library` imports transformers, which is an extra, and keeps it quiet and off the network.
* `adapters` puts a model into the form in which tasks call models; `from_transformers` is the public way there.
* `generating` writes text with a model, with what it has computed for earlier tokens.
* `configuration` makes a configuration from a task and the user's options.
* `building` builds a model from a configuration, or reads it from a folder.
"""
