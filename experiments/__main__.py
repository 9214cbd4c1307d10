"""`python -m bigbatch.experiments`: the same as `bigbatch-exp`, for launchers that start modules."""

from bigbatch.experiments.commands.main import main

if __name__ == "__main__":
    main()
