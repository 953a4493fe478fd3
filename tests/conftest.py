"""Tests run in float64 with strict promotion; where users use float32, a test names it."""

import collections
import gc
import os
import signal
from pathlib import Path

# The tests run in two processes on what may be two cores: a BLAS that spins on both would wait for
# the other's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax  # noqa: E402

# Compiling is most of the time of a test, and half of that goes into the fusion emitters; later
# versions do not know the flag.
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_use_fusion_emitters=false"
    )

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from unrolled.cli import main  # noqa: E402

FOLDER = Path(__file__).parent

# Tracing makes many objects that live: looking for cycles among them is a tenth of the time.
gc.set_threshold(200_000, 50, 1000)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Save compiling, which is two thirds of the time of a test.

    The default tests compile without most optimisations; `-m slow` and other selections compile as
    users do. Other processes, and later runs, load what one process has compiled; the cache of the
    user's own commands is left alone.
    """
    jax.config.update("jax_disable_most_optimizations", config.option.markexpr == "not slow")
    if not config.pluginmanager.hasplugin("cacheprovider"):
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of commands in other processes
        jax.config.update("jax_enable_compilation_cache", False)
        return
    folder = os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("compiled"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# Tests whose cases show one property again and again, a second or more each: how many cases run
# by default. The others are slow tests.
DEFAULT_CASES = {
    "models/test_convolution.py": {
        "test_values_and_gradients_are_those_of_the_plain_form": 4,
    },
    "models/test_cscnet.py": {
        "test_with_stride_one_there_is_one_shift": 0,
    },
    "models/test_lenet.py": {
        "test_activations_may_differ_from_filter_to_filter": 0,
        "test_params_are_drawn_as_pytorch_draws_them": 0,
        "test_values_and_gradients_are_those_of_the_plain_form": 2,
    },
    "models/test_ml_csc.py": {
        "test_batches_of_pictures_meet_the_atoms_of_a_convolution": 2,
        "test_constrained_steps_are_proximal_whatever_the_params": 0,
        "test_gradients_are_central_differences": 1,
        "test_one_layer_is_ista_or_fista_for_nonnegative_codes": 1,
        "test_the_networks_for_mnist_have_the_parameters_of_the_paper": 1,
    },
    "realize/test_attention.py": {
        "test_jit_vmap_and_derivatives": 0,
    },
    "realize/test_cnn.py": {
        "test_a_polyphase_tree_equals_its_dense_map": 2,
        "test_a_wide_network_of_sixteen_steps": 0,
        "test_an_nnx_module_of_a_realization_trains": 0,
        "test_apply_gives_the_codes_of_the_layer": 1,
        "test_float32": 0,
        "test_other_activations_shrink_as_the_layer_does": 3,
        "test_params_from_theory_and_as_a_tuple_of_steps": 0,
        "test_the_layers_as_records_compute_the_codes": 2,
    },
    "realize/test_conv_layer.py": {
        "test_a_layer_equals_its_loops": 3,
    },
    "realize/test_transformer.py": {
        "test_a_block_equals_an_iteration": 4,
        "test_a_stack_has_the_codes_of_its_layer": 0,
        "test_float32": 0,
        "test_it_can_be_built_under_jit_and_its_derivatives_are_those_of_the_layer": 0,
        "test_jit_vmap_and_loop_agree": 0,
        "test_layers_that_no_block_realizes_are_refused": 0,
        "test_signals_above_the_bound_are_refused": 0,
        "test_soft_codes_stay_within_their_bound": 0,
        "test_stacks_of_all_depths": 1,
        "test_stacks_on_other_geometries": 1,
        "test_the_bound_for_given_signals_is_never_exceeded": 0,
        "test_the_bound_for_sparse_signals_is_within_a_factor_of_30_of_the_error": 0,
        "test_the_error_and_its_bound_vanish_as_alpha_grows": 0,
        "test_the_mask_exceeds_abs_u_on_all_tokens_and_blocks": 0,
    },
    "test_activations.py": {
        "test_check_passes_true_constants_and_refuses_smaller_ones": 4,
        "test_compose_keeps_constants_valid": 2,
        "test_constants_are_tight_upper_bounds": 8,
        "test_convex_thresholds_are_firmly_nonexpansive": 1,
        "test_values_and_slopes_are_right_in_the_whole_range_of_a_dtype": 1,
    },
    "test_analytic.py": {
        "test_a_plan_of_one_block_is_steps_for": 0,
        "test_a_planned_chain_ends_within_its_tolerance": 0,
        "test_activations_in_float32_stay_under_their_bounds_at_depth": 0,
        "test_beyond_the_hypotheses_nothing_is_nan": 3,
        "test_chains_of_every_activation_stay_under_their_bounds": 1,
        "test_depth_is_harmless_per_atom": 0,
        "test_minimax_weights_are_those_of_the_generalized_coherence": 0,
        "test_no_member_breaks_the_bounds_per_atom": 2,
        "test_noise_in_l2_enters_a_chain_as_the_l1_noise_of_equal_weight": 0,
        "test_noise_in_l2_stays_under_the_bounds": 2,
        "test_noise_in_l2_stays_under_the_bounds_per_atom": 0,
        "test_params_per_atom_are_those_of_the_atom_schedule": 0,
        "test_params_refuse_what_is_no_class": 1,
        "test_the_error_of_a_chain_is_proportional_to_the_scale": 1,
        "test_thresholds_per_atom_are_never_above_the_common_ones": 1,
    },
    "test_bad_input.py": {
        "test_11_numpy_scalars_do_not_widen_half_types": 0,
        "test_13_14_a_bad_signal_spoils_only_its_own_code": 8,
        "test_13_14_solvers_mark_the_bad_signal": 1,
        "test_14_a_traced_bad_dictionary_shows": 3,
        "test_29_params_of_another_family_are_refused_unless_they_have_the_same_records": 7,
        "test_6_an_empty_batch_gives_an_empty_batch": 6,
        "test_7_one_row_or_one_atom_works": 1,
        "test_8_integers_and_booleans_are_promoted": 1,
        "test_9_layers_warn_of_float64_without_x64": 3,
        "test_params_that_do_not_fit_raise_at_trace_time": 50,
        "test_single_cases": 14,
    },
    "test_basis_pursuit.py": {
        "test_a_signal_out_of_range_gets_the_code_of_its_projection_and_is_not_converged": 2,
        "test_a_signal_out_of_range_is_not_reproduced_in_half_precision": 1,
        "test_a_unique_sparse_code_is_found_with_exact_zeros_off_its_support": 2,
        "test_all_codes_that_mu_tilde_admits_are_recovered": 0,
        "test_codes_within_the_generalized_sparsity_bound_are_recovered": 0,
        "test_dense_codes_have_the_least_l1_norm_of_highs": 1,
        "test_empty_and_single_batches": 0,
        "test_gradients_in_half_precision": 0,
        "test_gradients_where_float64_is_off": 0,
        "test_half_precision_is_solved_and_rounded": 1,
        "test_it_runs_where_float64_is_off": 1,
        "test_planted_chains_are_recovered": 0,
        "test_signals_of_tying_atoms_are_made_to_rounding": 1,
        "test_small_random_degenerate_programs": 0,
        "test_sparse_codes_have_the_least_l1_norm_of_highs": 3,
        "test_structured_dictionaries_give_the_codes_of_their_matrix": 0,
        "test_the_derivative_at_a_sparse_code_moves_its_support_alone": 2,
        "test_the_gradient_goes_through_a_chain": 0,
        "test_the_unique_code_of_a_dense_signal_has_no_more_nonzeros_than_the_rank": 5,
        "test_vmap_over_dictionaries_and_nested_vmaps_are_loops": 0,
    },
    "test_bpdn.py": {
        "test_a_code_is_that_of_the_lasso_with_its_residual": 0,
        "test_a_signal_too_far_from_the_range_is_reported": 0,
        "test_a_small_ball_is_basis_pursuit": 0,
        "test_codes_are_feasible_and_their_value_is_that_of_a_dual_point": 1,
        "test_float32_says_what_it_reached": 0,
    },
    "test_calibrate.py": {
        "test_a_chain_is_calibrated_block_by_block": 0,
        "test_a_convolutional_dictionary": 0,
        "test_each_greedy_step_is_at_least_as_good_as_the_one_it_replaces": 3,
        "test_in_float32": 0,
        "test_weights_that_expand_begin_with_a_step_size": 0,
    },
    "test_checkpoint.py": {
        "test_a_curriculum_goes_on_in_the_stage_it_was_in": 0,
        "test_a_curriculum_whose_first_stage_is_one_step_that_harms_goes_on": 0,
        "test_a_learned_dictionary_and_an_optimiser_without_state_go_on": 0,
        "test_a_model_without_a_form_goes_on_and_its_params_come_back_where_they_have_one": 0,
        "test_a_network_in_float32_with_random_keys_in_its_optimiser_goes_on": 0,
        "test_a_run_of_an_older_version_goes_on_bit_for_bit": 0,
        "test_a_run_that_is_out_of_patience_stays_stopped": 0,
        "test_a_training_of_a_family_of_a_user_resumes_bit_for_bit": 0,
        "test_another_option_of_a_layer_of_a_network_is_refused": 0,
        "test_another_run_is_refused_with_a_table_of_what_differs": 5,
        "test_networks_come_back_with_all_options_of_their_layers": 0,
        "test_networks_lists_dicts_and_empty_arrays_come_back": 0,
        "test_weights_of_every_family_come_back_bit_for_bit_with_their_layer": 1,
    },
    "test_cli.py": {
        "test_certify_covers_an_activation_and_the_smallest_entries": 0,
        "test_certify_normalizes_on_request": 0,
        "test_certify_reports_on_a_chain": 0,
        "test_compare_on_an_own_dictionary": 0,
        "test_compare_on_own_pictures": 0,
        "test_compare_on_own_signals": 0,
        "test_compare_on_own_signals_with_codes": 0,
        "test_doctor_runs_from_another_directory": 0,
        "test_one_line_says_what_to_mend": 24,
        "test_pursuits_stand_beside_layers": 0,
    },
    "test_collections.py": {
        "test_crop_and_flip_is_a_function_of_its_key_in_every_dtype": 0,
    },
    "test_compare.py": {
        "test_a_zero_signal_leaves_the_gap_finite": 0,
        "test_codes_stand_for_themselves": 0,
        "test_curves_against_direct_computation": 1,
        "test_the_figure_draws_every_method": 0,
        "test_the_gap_to_the_lasso_optimum": 0,
    },
    "test_compare_chains.py": {
        "test_the_numbers_of_a_layer_are_those_of_its_codes": 0,
    },
    "test_conformance.py": {
        "test_a_dictionary_is_a_matrix_and_its_adjoint": 5,
        "test_a_dictionary_is_a_pytree_of_its_arrays": 5,
        "test_a_layer_keeps_its_dtype": 10,
        "test_a_network_of_one_layer_is_the_layer": 8,
        "test_a_network_runs_in_every_way": 1,
        "test_a_structured_dictionary_is_its_matrix": 3,
        "test_activations_conform": 4,
        "test_activations_have_finite_gradients_everywhere": 6,
        "test_codes_and_gradients_are_the_same_however_the_loop_runs": 1,
        "test_equal_shapes_are_traced_once": 8,
        "test_every_way_to_run_a_layer_gives_the_same_code": 2,
        "test_gradients_are_central_differences_in_every_leaf": 3,
        "test_gradients_of_a_network_are_central_differences": 1,
        "test_gradients_reach_every_array_of_a_dictionary": 8,
        "test_iterates_end_at_the_code_and_begin_as_shorter_layers": 3,
        "test_no_steps_give_the_zero_code": 6,
        "test_params_survive_a_file": 8,
        "test_pursuits_answer_alike_however_they_are_run": 1,
        "test_pursuits_keep_float32": 0,
        "test_pursuits_take_pictures_of_convolutions": 0,
        "test_signatures_say_the_same_of_every_layer": 8,
        "test_solvers_answer_alike_however_they_are_run": 1,
        "test_solvers_certify_what_they_return": 3,
        "test_solvers_take_structured_dictionaries": 1,
        "test_the_wider_dtype_wins": 4,
        "test_two_stacks_of_half_the_depth_are_the_whole": 4,
    },
    "test_convolutional_learning.py": {
        "test_a_resumed_learning_is_the_same_to_the_last_bit": 0,
        "test_filters_and_codes_are_nearly_stationary": 0,
        "test_filters_and_codes_that_move_apart_give_the_same_images": 1,
        "test_unknown_samples_count_nothing": 0,
    },
    "test_csc_models.py": {
        "test_batch_norms_are_trained_saved_and_switched": 0,
    },
    "test_curriculum.py": {
        "test_a_family_of_a_user_has_a_curriculum_and_a_search": 0,
        "test_a_search_equals_a_loop": 0,
        "test_one_compiled_step_serves_all_stages": 0,
        "test_patience_ends_a_stage": 0,
        "test_rates_per_step_are_separate_optimisers": 1,
        "test_shared_weights_and_unstacked_steps": 0,
    },
    "test_deep_blocks.py": {
        "test_dilated_filters_are_filters_with_zeros_between": 0,
        "test_mixed_scale_dictionaries": 0,
        "test_one_sweep_is_a_network_with_dense_connections_and_more_are_ml_ista": 0,
        "test_one_threshold_per_channel_and_filter": 0,
    },
    "test_deep_pursuits.py": {
        "test_float32_stays_float32": 0,
        "test_jit_and_vmap_are_a_loop_and_a_bad_signal_spoils_only_itself": 0,
        "test_layered_thresholding_is_the_forward_pass_of_a_cnn": 0,
        "test_local_error_agrees_with_a_generic_solver": 0,
        "test_local_sparsity_agrees_with_a_generic_solver": 0,
        "test_nonnegative_layered_thresholding_is_judged_alike_at_any_scale": 1,
        "test_one_layer_is_the_solver_of_the_lasso_bit_for_bit": 1,
        "test_patches_and_stripes_are_the_windows_of_their_definition": 0,
        "test_projection_of_one_layer_is_orthogonal_matching_pursuit": 1,
        "test_structured_dictionaries_are_their_matrices": 0,
        "test_the_exact_problem_agrees_with_a_generic_solver": 0,
        "test_the_shrinkage_of_the_fullest_rows_is_a_proximal_map": 1,
        "test_the_zeros_are_held_and_the_codes_are_those_of_the_oracle_on_the_supports_found": 0,
    },
    "test_dictionaries.py": {
        "test_a_batch_of_dictionaries": 2,
        "test_a_kind_of_a_users_own_stands_inside_others": 0,
        "test_arrays_of_both_libraries_defer_on_the_left": 2,
        "test_conv_in_half_precision": 0,
        "test_conv_in_three_dimensions_with_unequal_strides": 1,
        "test_conv_is_its_matrix": 2,
        "test_gradients": 2,
        "test_normalize_splits_off_the_norms": 5,
        "test_norms_of_zero_atoms_have_the_gradient_zero": 0,
        "test_products_promote": 1,
        "test_structured_dictionaries_are_their_matrices": 3,
        "test_the_theory_of_a_kind_of_a_users_own_is_that_of_its_matrix": 0,
        "test_transposing_twice_gives_the_dictionary_back": 2,
        "test_unit_atoms": 0,
    },
    "test_dictionary_learning.py": {
        "test_double_sparsity_finds_planted_blocks": 0,
        "test_the_objective_rises_only_where_atoms_are_replaced": 3,
        "test_the_same_call_goes_on_from_its_file": 2,
    },
    "test_docs.py": {
        "test_the_example_of_the_readme_runs": 0,
        "test_the_family_of_the_guide_works": 0,
    },
    "test_doctests.py": {
        "test_examples_run": 5,
    },
    "test_evolution.py": {
        "test_a_convolutional_dictionary_is_measured_by_its_filters": 0,
        "test_the_layers_of_ml_lista_are_watched_too": 0,
    },
    "test_experiments.py": {
        "test_a_layer_that_is_called_twice_is_two_layers_and_the_run_resumes": 0,
        "test_networks_of_convolutional_sparse_coding_are_trained_and_restored": 0,
        "test_rows_and_weights_do_not_depend_on_the_default_dtype_of_jax": 0,
    },
    "test_export.py": {
        "test_all_records_and_dictionaries_are_arguments": 0,
        "test_params_of_a_family_are_arguments": 1,
    },
    "test_families.py": {
        "test_ml_lista_trains_and_takes_structured_dictionaries": 0,
        "test_support_selection_makes_ss_and_cpss": 2,
        "test_tilista_is_alista_with_weights_that_move": 0,
        "test_tista_starts_and_codes_nothing_in_half_precision": 1,
        "test_weights_are_those_that_act_in_the_step": 10,
    },
    "test_features.py": {
        "test_one_step_of_a_network_of_sparse_coding_is_its_dictionary": 0,
    },
    "test_half_quadratic.py": {
        "test_as_beta_grows_it_becomes_the_lasso": 0,
        "test_below_one_it_converges_to_a_stationary_point": 0,
        "test_the_three_ways_to_solve_the_linear_system_agree": 0,
    },
    "test_hyperlista.py": {
        "test_three_numbers_reach_60_decibels_on_the_standard_benchmark": 0,
    },
    "test_lasso.py": {
        "test_an_unreachable_tolerance_is_reported": 0,
        "test_codes_are_those_of_scikit_learn": 1,
        "test_degenerate_dictionaries": 1,
        "test_derivatives_of_a_structured_dictionary_and_of_a_batch": 0,
        "test_derivatives_where_the_atoms_of_the_support_depend": 0,
        "test_half_precision_where_the_atoms_of_a_support_depend": 0,
        "test_implicit_derivatives_are_those_of_many_steps": 0,
        "test_large_penalties_give_zero_without_a_step": 0,
        "test_the_gap_bounds_the_excess_of_any_code": 2,
        "test_the_path_is_a_sequence_of_solutions": 0,
    },
    "test_lasso_batch.py": {
        "test_codes_are_those_of_the_solver_of_one_signal": 0,
        "test_convolutions_take_batches_of_pictures": 0,
        "test_degenerate_dictionaries": 1,
        "test_every_code_has_its_certificate": 2,
        "test_tall_square_and_wide_dictionaries": 1,
    },
    "test_layer_records.py": {
        "test_check_refuses_a_known_negative_threshold": 8,
        "test_check_takes_the_params_of_init_in_both_forms": 10,
        "test_layers_that_nobody_holds_are_freed_beyond_the_latest": 0,
        "test_other_ways_to_run_a_network_change_nothing": 1,
    },
    "test_linear_programs.py": {
        "test_the_first_order_method_only_saves_pivots": 30,
        "test_the_interior_point_alone_reaches_the_gap": 20,
    },
    "test_metrics.py": {
        "test_kkt_violation_takes_structured_dictionaries": 0,
    },
    "test_networks.py": {
        "test_an_analytic_chain_keeps_its_certificate": 0,
        "test_gradients_reach_every_layer_and_dictionary": 0,
    },
    "test_nnx.py": {
        "test_a_convolutional_dictionary_can_be_learned": 0,
        "test_a_module_has_the_codes_and_the_gradients_of_its_layer": 3,
        "test_training_under_nnx_optimizer_is_that_of_fit": 0,
    },
    "test_omp.py": {
        "test_a_tolerance_bounds_the_residual_as_in_scikit_learn": 0,
        "test_codes_are_those_of_scikit_learn": 2,
        "test_dependent_atoms_are_never_chosen_together": 0,
        "test_half_precision_is_computed_in_single_and_rounded": 1,
        "test_no_atom_and_no_signal": 0,
    },
    "test_own.py": {
        "test_a_family_conforms": 3,
        "test_a_family_is_compared": 0,
        "test_a_training_of_a_family_goes_on_from_its_checkpoint": 0,
        "test_every_family_takes_a_dictionary": 3,
    },
    "test_plots.py": {
        "test_codes_that_are_all_zero_have_no_precision": 0,
        "test_the_coherence_of_weights_is_taken_at_a_unit_diagonal": 0,
        "test_the_lines_of_a_training_have_a_legend_and_a_bar": 1,
    },
    "test_pursuit.py": {
        "test_a_fixed_number_of_steps_is_differentiable_in_everything": 1,
        "test_an_activation_without_units_has_the_same_certificate_at_any_scale": 1,
        "test_ista_never_raises_the_objective_and_obeys_its_rate": 1,
        "test_steps_and_convergence_are_reported_as_they_are": 1,
        "test_structured_dictionaries_give_the_codes_of_their_matrix": 0,
        "test_threshold_takes_one_value_per_atom_and_per_filter": 0,
        "test_vmap_is_a_loop_and_jit_is_eager": 1,
    },
    "test_reductions.py": {
        "test_a_nan_in_a_traced_dictionary_reaches_the_result": 4,
        "test_a_nan_reaches_the_result": 2,
        "test_relu_and_celu_are_those_of_jax": 0,
    },
    "test_scales.py": {
        "test_a_seed_is_a_key": 3,
        "test_a_share_of_lam_max_has_no_scale": 2,
        "test_codes_have_no_scale_of_the_dictionary": 1,
        "test_coherence_of_a_large_dictionary": 0,
        "test_derivatives_of_the_lasso_have_no_scale": 0,
        "test_eager_calls_compile_once": 3,
        "test_every_dictionary_has_norms_at_every_scale": 2,
        "test_gradients_go_through_the_change_of_units": 0,
        "test_integers_become_floats_and_complex_is_refused": 4,
        "test_powers_of_two_go_through": 6,
        "test_products_come_in_blocks": 0,
        "test_signals_whose_energy_is_above_the_range_of_half_precision": 1,
    },
    "test_sklearn.py": {
        "test_a_copy_and_a_pickle_give_the_same_codes": 1,
        "test_a_pipeline_and_a_grid_search_choose_a_sparsity": 0,
        "test_codes_have_the_dtype_of_the_samples_and_come_in_chunks": 0,
        "test_the_codes_are_those_of_the_pursuit": 0,
    },
    "test_train_cli.py": {
        "test_a_chain_trains_on_signals_without_codes": 0,
        "test_a_chain_trains_resumes_encodes_and_is_certified": 0,
        "test_a_curriculum_goes_stage_by_stage": 0,
        "test_a_family_of_your_own_trains_resumes_and_encodes": 0,
        "test_encode_takes_a_pursuit": 0,
        "test_every_family_starts_as_it_says_and_refuses_foreign_options": 0,
        "test_killed_and_resumed_it_ends_with_the_same_bits": 0,
        "test_options_that_two_families_share_are_left_to_the_layers": 0,
        "test_planted_test_signals_are_none_of_those_that_train_or_validate": 0,
        "test_signals_of_a_file_without_codes": 0,
        "test_starts_from_theory_have_the_form_of_the_family": 0,
        "test_the_layers_of_a_chain_start_on_the_codes_of_the_layer_before": 0,
        "test_whatever_is_read_the_answer_is_a_configuration_or_an_error_of_ours": 0,
        "test_without_import_an_unknown_family_is_one_line_of_advice": 0,
    },
    "test_training.py": {
        "test_a_family_of_a_user_trains_and_its_thresholds_stay_non_negative": 0,
        "test_a_nan_stops_the_training_at_its_step": 1,
        "test_fixed_weights_stay_bit_for_bit": 1,
        "test_learning_a_convolutional_dictionary": 0,
        "test_signals_with_dictionaries_of_their_own": 0,
        "test_signals_with_structured_dictionaries_of_their_own": 0,
        "test_the_step_whose_gradient_breaks_is_named": 1,
        "test_training_a_network": 1,
        "test_training_in_float32": 0,
        "test_training_lowers_every_loss": 1,
        "test_training_lowers_the_validation_loss_of_every_family": 1,
        "test_training_over_many_dictionaries": 0,
        "test_training_the_unstacked_form_is_the_same_training": 0,
    },
    "test_weights_table.py": {
        "test_every_number_is_that_of_the_weights_it_stands_for": 1,
    },
    "theory/test_certificates.py": {
        "test_no_member_of_the_class_breaks_a_certificate": 0,
        "test_theory_s_own_params_have_the_error_of_their_schedule": 1,
    },
    "theory/test_coherence.py": {
        "test_babel_is_the_largest_sum_of_s_products": 2,
        "test_babel_is_traceable_in_every_dtype": 1,
        "test_babel_of_convolutions_is_that_of_the_dense_matrix": 2,
        "test_convolutional_coherence_outside_jit_and_with_dense_weights": 0,
        "test_convolutional_coherences_are_those_of_the_dense_matrix": 1,
        "test_mutual_coherence_is_the_largest_cosine_between_columns": 2,
        "test_mutual_coherence_of_duplicate_or_opposite_columns_is_one_and_never_above": 1,
        "test_paley_frames_attain_the_welch_bound": 2,
        "test_rounding_guard_of_a_kernel_that_wraps_onto_itself_is_no_smaller": 0,
        "test_rounding_guard_of_convolutions_is_that_of_the_dense_matrices": 1,
        "test_the_gradient_of_babel_matches_finite_differences": 0,
        "test_weights_may_have_a_longer_kernel_than_the_dictionary": 0,
    },
    "theory/test_convergence.py": {
        "test_atom_coherence_is_the_largest_product_of_every_atom": 0,
        "test_atom_coherence_of_structured_dictionaries_and_under_jit": 0,
        "test_atom_schedule_is_never_above_the_common_one": 1,
        "test_no_member_breaks_the_bounds_of_its_atoms": 2,
        "test_noise_of_a_given_l2_norm_stays_under_the_bounds_of_omega": 1,
        "test_sums_of_sigmoids_stay_under_the_bounds_of_theorem_10": 1,
        "test_the_guard_of_the_atoms_keeps_depth_harmless": 2,
        "test_the_objective_stays_within_its_bound_on_both_sides": 4,
        "test_the_support_is_found_from_the_promised_step_on": 2,
        "test_theorem_of_follows_the_definitions": 10,
        "test_two_runs_stay_within_the_sequence_bound": 1,
    },
    "theory/test_generalized.py": {
        "test_convolutions_under_jit_vmap_and_grad": 0,
        "test_least_entries_agree_with_highs_at_their_level": 8,
        "test_least_entries_hold_at_levels_just_above_the_coherence": 4,
        "test_least_entries_of_a_convolution_and_of_float32_are_dense_and_wide": 0,
        "test_mu_tilde_is_at_most_mu_and_at_least_the_welch_bound": 2,
        "test_one_program_per_filter_answers_for_the_whole_circle": 2,
        "test_other_convolutions_are_answered_by_their_matrix": 0,
        "test_some_atoms_of_a_circle_are_answered_one_by_one": 0,
        "test_the_bounds_enclose_the_primal_and_the_dual_value_of_highs": 3,
        "test_the_bounds_enclose_the_value_of_exact_arithmetic": 1,
        "test_the_certified_coherence_is_itself_a_level_that_has_weights": 4,
        "test_the_gap_is_closed_for_every_atom": 8,
        "test_the_gradient_is_zero_where_atoms_are_independent_and_weights_carry_none": 0,
        "test_the_gradient_of_the_maximum_through_a_normalisation": 0,
        "test_the_interior_point_alone_gives_the_same_values": 2,
        "test_the_maximum_alone_is_the_same_maximum": 8,
        "test_weights_of_least_entries_keep_their_level_and_their_unit_diagonal": 16,
    },
    "theory/test_guarantees.py": {
        "test_a_long_chain_reaches_1e_11_without_false_positives": 0,
        "test_analytic_params_are_the_schedule": 1,
        "test_no_member_of_the_class_breaks_a_bound": 1,
        "test_other_activations_stay_under_their_bounds": 2,
        "test_the_corrected_chain_converges_where_the_printed_one_diverges": 0,
        "test_the_guard_makes_depth_harmless": 1,
        "test_violated_hypotheses_warn_and_the_params_are_usable": 1,
    },
    "theory/test_layered.py": {
        "test_no_signal_of_the_class_breaks_the_penalties": 0,
        "test_no_signal_of_the_class_breaks_the_thresholds": 0,
        "test_the_holistic_oracle_is_never_worse_than_the_projection": 2,
    },
    "theory/test_models.py": {
        "test_convolutional_chains_are_measured_by_their_stripes": 0,
        "test_convolutional_chains_in_two_dimensions_and_float32": 0,
        "test_stripe_norm_counts_overlapping_atoms": 8,
        "test_structured_dictionaries_and_lists_and_integers": 0,
    },
    "theory/test_schedules.py": {
        "test_error_gain_of_a_convolution_is_that_of_its_matrix": 1,
    },
    "theory/test_stability.py": {
        "test_no_pair_of_chains_is_further_apart_than_delta": 2,
        "test_products_bound_the_codes_behind_several_layers": 2,
        "test_structured_dictionaries_have_the_bounds_of_their_matrices": 0,
    },
    "theory/test_uniqueness.py": {
        "test_certified_sparsities_are_below_half_the_spark": 4,
        "test_structured_dictionaries_and_their_products_are_those_of_the_matrices": 0,
    },
    "theory/test_weights.py": {
        "test_a_small_filter_that_the_pseudo_inverse_cuts_is_refused": 0,
        "test_a_small_ridge_is_harmless_where_the_rank_is_deficient": 4,
        "test_a_traced_ridge_may_be_zero": 1,
        "test_an_atom_that_the_pseudo_inverse_cuts_is_refused": 1,
        "test_atoms_that_are_not_shifts_of_each_other_get_dense_weights": 0,
        "test_circular_weights_are_the_dense_optimum_with_the_support_of_the_filter": 1,
        "test_circular_weights_beat_every_other_bank_of_the_same_support": 0,
        "test_convolutional_weights_solve_the_small_system": 3,
        "test_weights_solve_the_quadratic_program": 2,
        "test_weights_with_a_ridge_solve_their_quadratic_program": 5,
    },
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the cases beyond those of `DEFAULT_CASES` as slow."""
    seen = collections.Counter()
    for item in items:
        path, name = os.path.relpath(item.path, FOLDER), getattr(item, "originalname", "")
        most = DEFAULT_CASES.get(path, {}).get(name)
        seen[path, name] += 1
        if most is not None and seen[path, name] > most:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    """How many cases of the bad-input matrix were tried; one that is not refused fails its test."""
    passed = terminalreporter.stats.get("passed", [])
    counts = [n for report in passed for name, n in report.user_properties if name == "matrix"]
    if counts:
        terminalreporter.write_line(f"bad-input matrix: {sum(counts)} cases, all refused")


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Programs are kept for one file: gigabytes of them slow the garbage collector down."""
    yield
    jax.clear_caches()


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def interruptible():
    """SIGINT as at a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def quick_compilation():
    """Tiny problems spend their time in the compiler, however the tests are selected."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def float32_by_default():
    """As in a fresh process of a user."""
    with jax.enable_x64(False):
        yield


@pytest.fixture
def run(capsys, folder, monkeypatch):
    """The command line in process, in the `folder` of a module's inputs.

    `run(*arguments)` returns (status, stdout, stderr).
    """
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main([str(a) for a in arguments])
        return status, *capsys.readouterr()

    return run
