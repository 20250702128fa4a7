-- A ledger of format 4, as it must stay readable for ever: do not edit.
-- One and a half rounds of two clients: client 1 of round 2 failed, and round 2 with it.
-- In the rows that are whole every figure has a value of its own.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT) STRICT;
CREATE TABLE rounds (
    round INTEGER NOT NULL,
    test_accuracy REAL,
    test_loss REAL,
    clients_trained INTEGER NOT NULL,
    clients_failed INTEGER NOT NULL,
    uplink_bytes INTEGER,
    downlink_bytes INTEGER,
    uplink_dense_bytes INTEGER,
    downlink_dense_bytes INTEGER,
    train_flops INTEGER,
    cpu_seconds REAL,
    wall_seconds REAL,
    package_joules REAL,
    worker_idle_fraction REAL,
    model_compressed_bytes INTEGER,
    model_zero_fraction REAL,
    model_top_1_percent_energy REAL,
    model_top_10_percent_energy REAL,
    model_entropy_bits REAL,
    PRIMARY KEY (round)
) STRICT;
CREATE TABLE clients (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    examples INTEGER,
    steps INTEGER,
    examples_processed INTEGER,
    loss_first_step REAL,
    loss_last_step REAL,
    loss_before REAL,
    loss_after REAL,
    accuracy_after REAL,
    train_flops INTEGER,
    bias_flops INTEGER,
    optimizer_flops INTEGER,
    activation_elements INTEGER,
    compare_ops INTEGER,
    multiply_add_ops INTEGER,
    division_ops INTEGER,
    transcendental_ops INTEGER,
    cpu_seconds REAL,
    wall_seconds REAL,
    data_cpu_seconds REAL,
    data_wall_seconds REAL,
    serialization_cpu_seconds REAL,
    serialization_wall_seconds REAL,
    evaluation_cpu_seconds REAL,
    evaluation_wall_seconds REAL,
    measuring_cpu_seconds REAL,
    measuring_wall_seconds REAL,
    threads INTEGER,
    cohort INTEGER,
    waiting_seconds REAL,
    others_cpu_seconds REAL,
    saved_bytes INTEGER,
    model_bytes INTEGER,
    gradient_bytes INTEGER,
    optimizer_bytes INTEGER,
    peak_memory_bytes INTEGER,
    startup_cpu_seconds REAL,
    startup_wall_seconds REAL,
    container_cpu_seconds REAL,
    container_peak_memory_bytes INTEGER,
    container_memory_limit_bytes INTEGER,
    container_received_bytes INTEGER,
    container_sent_bytes INTEGER,
    dense_bytes INTEGER,
    wire_bytes INTEGER,
    compressed_bytes INTEGER,
    downlink_dense_bytes INTEGER,
    downlink_wire_bytes INTEGER,
    zero_fraction REAL,
    zero_fraction_without_blank REAL,
    top_1_percent_energy REAL,
    top_10_percent_energy REAL,
    entropy_bits REAL,
    codec_error REAL,
    update_norm REAL,
    drift_cosine REAL,
    gradient_ratio_before REAL,
    gradient_ratio_after REAL,
    modelled_seconds REAL,
    modelled_joules REAL,
    status TEXT NOT NULL,
    error TEXT,
    PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE layers (
    round INTEGER NOT NULL,
    client INTEGER NOT NULL,
    layer TEXT NOT NULL,
    phase TEXT NOT NULL,
    parameters INTEGER,
    zero_fraction REAL,
    dead_fraction REAL,
    saturated_fraction REAL,
    preactivation_mean REAL,
    preactivation_std REAL,
    gradient_norm REAL,
    update_norm REAL,
    PRIMARY KEY (round, client, layer, phase)
) STRICT;
CREATE TABLE client_states (client INTEGER PRIMARY KEY, state BLOB NOT NULL) STRICT;
CREATE TABLE checkpoints (
    round INTEGER PRIMARY KEY,
    file TEXT NOT NULL,
    sha256 TEXT NOT NULL
) STRICT;
INSERT INTO meta VALUES ('format_version', '4'), ('fedsim', '0.1.0');
INSERT INTO rounds VALUES
    (1, 0.8125, 102.5, 2, 0, 9007199254740993, 106, 107, 108, 109, 110.5, 111.5, 112.5, 0.125, 113,
     114.5, 115.5, 116.5, 117.5);
INSERT INTO clients VALUES
    (1, 0, 202, 203, 204, 205.5, 206.5, 207.5, 208.5, 209.5, 210, 211, 212, 213, 214, 215, 216,
     217, 218.5, 219.5, 220.5, 221.5, 222.5, 223.5, 224.5, 225.5, 226.5, 227.5, 228, 229,
     230.5, 231.5, 232, 233, 234, 235, 236, 260.5, 261.5, 262.5, 263, 264, 265, 266, 237, 238,
     239, 240, 241, 242.5, 243.5, 244.5, 245.5, 246.5, 247.5, 248.5, 249.5, 250.5, 251.5,
     252.5, 253.5, 'ok', NULL),
    (1, 1, 40, 4, NULL, 2.5, 9e999, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, 0.75, 0.875, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 16, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0.03125, NULL, NULL, NULL, NULL, NULL,
     'ok', NULL),
    (2, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     'failed', 'the worker died');
INSERT INTO layers VALUES
    (1, -1, 'out', 'global', 304, 305.5, 306.5, 307.5, 308.5, 309.5, 310.5, 311.5),
    (1, 0, 'out', 'after', 404, 405.5, 406.5, 407.5, 408.5, 409.5, 410.5, 411.5),
    (1, 0, 'out', 'before', 504, 505.5, 506.5, 507.5, 508.5, 509.5, 510.5, NULL),
    (1, 1, 'out', 'after', 4, NULL, NULL, NULL, NULL, NULL, 9e999, NULL);
INSERT INTO checkpoints VALUES (
    1,
    'checkpoint-000001.safetensors',
    '78bda30f738bba72f5f04ea535e2f5c87538e34fd1e280313a81d7b011b62d09'
);
-- safetensors: {"control": [0.25, -1.0]} in float64
INSERT INTO client_states VALUES (1, X'68000000000000007b225f5f6d657461646174615f5f223a7b226f72646572223a225b5c22636f6e74726f6c5c225d227d2c22636f6e74726f6c223a7b226474797065223a22463634222c227368617065223a5b325d2c22646174615f6f666673657473223a5b302c31365d7d7d2020000000000000d03f000000000000f0bf');
