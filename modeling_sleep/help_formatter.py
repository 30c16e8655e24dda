"""The help of commands: the default stands behind each option, but for None, of which the option's own text speaks."""

import argparse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """As argparse has it, without `(default: None)`."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)
