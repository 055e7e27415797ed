"""Rewards with a short name. Strings, so that naming one does not import the others."""

countdown = "envs.countdown:reward"
grounding = "envs.grounding:reward"
gsm8k = "envs.gsm8k:reward"
addition = "envs.addition:reward"
reward_model = "rlft.rewards.model:RewardModel"
judge = "rlft.rewards.judge:Judge"
word_problems = "envs.word_problems:reward"
