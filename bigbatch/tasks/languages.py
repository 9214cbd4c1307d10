"""Languages by their codes, as Babel knows them, and their texts in plain characters."""

from difflib import get_close_matches

from babel import Locale, UnknownLocaleError
from babel.localedata import locale_identifiers

from bigbatch.comm.errors import ConfigurationError, quoted, suggestion

SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", " ") | dict.fromkeys("\u061c\u200b\u200e\u200f", ""))
"""What is invisible and only steers how a text is laid out: narrow spaces, spaces where no line may end, and marks of
the direction of writing. Nobody who reads an output sees whether a model has them right, and nobody types them."""


def language(name: str) -> Locale:
    """Finds a language by its code, such as "de", "pt-BR" or "zh_Hant".

    Raises:
        ConfigurationError: Babel does not know it; the message suggests the code that was probably meant.
    """
    code = name.replace("-", "_")
    if code.partition("_")[0].lower() in ("root", "und", "c", "posix"):  # no language, for which Babel takes English
        raise _unknown_language(name)
    try:
        return Locale.parse(code)
    except (UnknownLocaleError, ValueError) as error:
        raise _unknown_language(name) from error


def _unknown_language(name: str) -> ConfigurationError:
    codes = sorted(locale_identifiers())
    spoken = {code.lower(): code for code in codes}
    spoken |= {str(english).lower(): code for code, english in Locale("en").languages.items() if code in codes}
    close = get_close_matches(name.replace("-", "_").lower(), list(spoken), n=1)
    meant = suggestion(spoken[close[0]], codes) if close else ""
    return ConfigurationError(
        f"Unknown language {quoted(name)}{meant}. Babel knows {len(codes)} by codes such as en, de, pt_BR, ja or ar."
    )


def english_name(locale: Locale) -> str:
    """The name of a language in English, such as "Portuguese (Brazil)"."""
    return locale.english_name or str(locale)


def plain(text: str) -> str:
    """Writes a text without the invisible characters that only steer how it is laid out."""
    return text.translate(SPACES).strip()
