"""An H200 as XLA's compiler wants to be told of it where there is none (its message `GpuTargetConfigProto`, as text).

Figures of NVIDIA's data sheet and CUDA's device attributes; they steer tilings and fusions, not what is computed.
"""

_FLOAT_RATES = "\n".join(
    f"rate_infos {{ key: {key} value {{ clock_rate_ghz: 1.98 units_per_core: {units} ops_per_clock: {ops} }} }}"
    for key, units, ops in ((10, 128, 2), (11, 128, 1), (12, 64, 1), (16, 128, 2))  # half, float, double, bfloat16
)
_MATRIX_RATES = "\n".join(
    f"rate_infos {{ key: {key} value {{ clock_rate_ghz: 1.83 units_per_core: 4 ops_per_clock: {ops} }} }}"
    for key, ops in ((10, 512), (11, 256), (12, 32), (16, 512))
)

H200_TARGET = f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 151397597184
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  scalar_unit_description {{ {_FLOAT_RATES} }}
  matrix_unit_description {{ {_MATRIX_RATES} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "NVIDIA H200"
"""
