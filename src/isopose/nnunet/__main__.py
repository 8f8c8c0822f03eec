"""``python -m isopose.nnunet DATASET``: plans for nnUNetTrainerIsopose, beside nnU-Net's own."""

import argparse
import sys

from isopose.errors import InputError
from isopose.nnunet.plans import write_plans
from isopose.silence import silence


def main() -> int:
    """Write the plans, and print the next command."""
    parser = argparse.ArgumentParser(prog="python -m isopose.nnunet", description=__doc__)
    parser.add_argument("dataset", help="number or name of a dataset that nnU-Net has planned")
    parser.add_argument("-p", "--plans", default="nnUNetPlans", help="name of its plans (%(default)s)")
    arguments = parser.parse_args()
    silence()
    try:
        path = write_plans(arguments.dataset, arguments.plans)
    except InputError as error:
        print(f"isopose: {error}", file=sys.stderr)
        return error.exit_code
    print(f"plans: {path}")
    print(f"next: nnUNetv2_preprocess -d {arguments.dataset} -plans_name {path.stem} -c 2d")
    return 0


sys.exit(main())
