"""What runs at the server in a round: adds up what the sites give, without seeing what each of them gives."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp

from federation.counts import read_agreement
from federation.masking import CLIPPING, MODULUS, QUANTIZATION, threshold_of

FOLDER = Path(os.environ.get("OLLAMA_PACK_FEDERATION", "."))
SECONDS = 300.0  # that a site may take for each step

app = ServerApp()


class Sum(FedAvg):  # type: ignore[misc] # Any, where Flower is not installed
    """Takes part only with all sites, and hands the sum back only if there is one."""

    found: list[float] | None = None

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        if not results or failures:
            return None, {}
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        self.found = [float(each) for each in parameters_to_ndarrays(mean)[0]]
        return mean, metrics

    def configure_evaluate(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return super().configure_evaluate(server_round, parameters, client_manager) if self.found else []


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """One round."""
    agreed, number = read_agreement(FOLDER), int(context.run_config["round"])
    config = {"round": number}
    strategy = Sum(
        fraction_fit=1.0,
        fraction_evaluate=1.0,
        min_fit_clients=agreed.sites,
        min_evaluate_clients=agreed.sites,
        min_available_clients=agreed.sites,
        accept_failures=False,
        on_fit_config_fn=lambda _round: config,
        on_evaluate_config_fn=lambda _round: config,
        initial_parameters=ndarrays_to_parameters([np.zeros(len(agreed.cells))]),
    )
    masked = SecAggPlusWorkflow(
        num_shares=agreed.sites,
        reconstruction_threshold=threshold_of(agreed.sites),
        max_weight=1.0,
        clipping_range=CLIPPING,
        quantization_range=QUANTIZATION,
        modulus_range=MODULUS,
        timeout=SECONDS,
    )
    legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=1), strategy=strategy)
    DefaultWorkflow(fit_workflow=masked)(grid, legacy)
    total = None if strategy.found is None else [round(each * agreed.sites) for each in strategy.found]
    (FOLDER / f"round-{number}.json").write_text(
        json.dumps({"round": number, "sum": total}), encoding="utf-8"
    )
