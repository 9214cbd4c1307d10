"""Tasks by name: what is learnt, and from which text."""

from bigbatch.comm.registry import Registry

TASKS = Registry(
    "task",
    "bigbatch.tasks",
    {
        "language-modelling": "bigbatch.tasks.language_modelling:LanguageModelling",
        "documents": "bigbatch.tasks.documents:Documents",
        "translation": "bigbatch.tasks.translation:Translation",
        "translation:numbers": "bigbatch.tasks.translation:TranslationOfNumbers",
        "summarisation": "bigbatch.tasks.summarisation:Summarisation",
        "question-answering": "bigbatch.tasks.question_answering:QuestionAnswering",
    },
    base="bigbatch.tasks.task:Task",
)
"""All tasks; other packages add theirs as entry points of the group "bigbatch.tasks"."""
