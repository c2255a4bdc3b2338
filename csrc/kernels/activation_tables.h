// Tables of sigmoid and tanh, for as many entries as a processor looks up at once; vec_math.h has the formulas.
// Written by tests/activation_tables.py.
#pragma once

// clang-format off

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real, int entries>
struct SigmoidTable;
template <class Real, int entries>
struct TanhTable;

template <>
struct SigmoidTable<float, 8> {
  static constexpr float steps = 0x1.715476p+3f;
  static constexpr float step_high = 0x1.62e43p-4f;
  static constexpr float step_low = -0x1.05c61p-32f;
  static constexpr float c[] = {0x1.c7eaa6p+0f, -0x1.c7eaa6p+0f, 0x1.c7eaa6p-1f, -0x1.2ffae4p-2f, 0x1.2ff7dap-4f};
  static constexpr float scales[] = {0x1.c7eaa6p+0f, 0x1.f12e3ap+0f, 0x1.0f16f2p+1f, 0x1.27a016p+1f, 0x1.4261b8p+1f, 0x1.5f8f4cp+1f, 0x1.7f60eep+1f, 0x1.a213cep+1f};
};

template <>
struct SigmoidTable<float, 16> {
  static constexpr float steps = 0x1.715476p+4f;
  static constexpr float step_high = 0x1.62e43p-5f;
  static constexpr float step_low = -0x1.05c61p-33f;
  static constexpr float c[] = {0x1.ed5f3cp+0f, -0x1.ed5f3cp+0f, 0x1.ed642cp-1f, -0x1.48ec22p-2f};
  static constexpr float scales[] = {0x1.ed5f3cp+0f, 0x1.019b94p+1f, 0x1.0d0354p+1f, 0x1.18ec58p+1f, 0x1.255c5ap+1f, 0x1.325954p+1f, 0x1.3fe984p+1f, 0x1.4e136ep+1f, 0x1.5cddep+1f, 0x1.6c4ff6p+1f, 0x1.7c711cp+1f, 0x1.8d4912p+1f, 0x1.9edffp+1f, 0x1.b13e2ap+1f, 0x1.c46c94p+1f, 0x1.d87464p+1f};
};

template <>
struct SigmoidTable<double, 8> {
  static constexpr double steps = 0x1.71547652b82fep+3;
  static constexpr double step_high = 0x1.62e42fefa39efp-4;
  static constexpr double step_low = 0x1.abc9e3b39803fp-59;
  static constexpr double c[] = {0x1.c96375052617bp+0, -0x1.c96375052617bp+0, 0x1.c96375052640fp-1, -0x1.30ecf8ae196e5p-2, 0x1.30ecf8a0b1091p-4, -0x1.e7e18dd770dddp-7, 0x1.45469e0c27efbp-9, -0x1.73bd009bf6f97p-12};
  static constexpr double scales[] = {0x1.c96375052617bp+0, 0x1.f2c923b0324cep+0, 0x1.0ff6ff38261bdp+1, 0x1.28946aa2bff28p+1, 0x1.436c29d0bd56ap+1, 0x1.60b1db3a541a7p+1, 0x1.809dc95ab779dp+1, 0x1.a36d56efa90a6p+1};
};

template <>
struct TanhTable<float, 8> {
  static constexpr float step = 0x1.541808p+0f;
  static constexpr float steps = 0x1.816644p-1f;
  static constexpr float high = 0x1.299508p+3f;
  static constexpr float q[] = {-0x1.8fca26p-13f, 0x1.1474acp-9f, -0x1.6c12dcp-6f, 0x1.555554p-2f};
  static constexpr float values[] = {0x0p+0f, 0x1.bcdddep-1f, 0x1.fafbf4p-1f, 0x1.ffa58p-1f, 0x1.fff9a6p-1f, 0x1.ffff8ep-1f, 0x1.fffff8p-1f, 0x1p+0f};
  static constexpr float slopes[] = {0x1p+0f, 0x1.f5db4cp-3f, 0x1.3f707cp-6f, 0x1.69e06p-10f, 0x1.967c82p-14f, 0x1.c852acp-18f, 0x1.001fc6p-21f, 0x1.1f834cp-25f};
};

template <>
struct TanhTable<float, 32> {
  static constexpr float step = 0x1p-1f;
  static constexpr float steps = 0x1p+1f;
  static constexpr float high = 0x1.3p+3f;
  static constexpr float q[] = {-0x1.693bdep-6f, 0x1.555494p-2f};
  static constexpr float values[] = {0x0p+0f, 0x1.d9353ep-2f, 0x1.85efacp-1f, 0x1.cf6f98p-1f, 0x1.ed9506p-1f, 0x1.f92582p-1f, 0x1.fd77d2p-1f, 0x1.ff112cp-1f, 0x1.ffa818p-1f, 0x1.ffdfa8p-1f, 0x1.fff41ap-1f, 0x1.fffbap-1f, 0x1.fffe64p-1f, 0x1.ffff68p-1f, 0x1.ffffc8p-1f, 0x1.ffffecp-1f, 0x1.fffff8p-1f, 0x1.fffffep-1f, 0x1.fffffep-1f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f, 0x1p+0f};
  static constexpr float slopes[] = {0x1p+0f, 0x1.92a948p-1f, 0x1.ae0dc2p-2f, 0x1.721654p-3f, 0x1.2162c2p-4f, 0x1.b3afe2p-6f, 0x1.434a52p-7f, 0x1.dd37d2p-9f, 0x1.5f85aep-10f, 0x1.02bec8p-11f, 0x1.7ccec2p-13f, 0x1.1832dcp-14f, 0x1.9c5378p-16f, 0x1.2f5ffap-17f, 0x1.be6c4p-19f, 0x1.4875bcp-20f, 0x1.e355b4p-22f, 0x1.639e3p-23f, 0x1.05a628p-24f, 0x1.81057p-26f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f, 0x0p+0f};
};

template <>
struct TanhTable<double, 8> {
  static constexpr double step = 0x1.478198693fe6bp+1;
  static constexpr double steps = 0x1.903654d3bbb33p-2;
  static constexpr double high = 0x1.33097c33d7568p+4;
  static constexpr double q[] = {-0x1.d4f04d4fb2c4p-41, 0x1.2fa9ac50096c3p-36, -0x1.d58c876a192f7p-33, 0x1.3207a58e0b638p-29, -0x1.7d2c84e8cc3b3p-26, 0x1.d6cf7726f9375p-23, -0x1.227ffaa157fd8p-19, 0x1.66a8ee78f1cc6p-16, -0x1.bbd77915e6bd8p-13, 0x1.1566abbfd886cp-9, -0x1.6c16c16c165b6p-6, 0x1.5555555555554p-2};
  static constexpr double values[] = {0x0p+0, 0x1.f9e684df3964ap-1, 0x1.fff6966350148p-1, 0x1.fffff18f78cecp-1, 0x1.ffffffe9d9723p-1, 0x1.ffffffffde054p-1, 0x1.ffffffffffcbep-1, 0x1.ffffffffffffbp-1};
};

template <>
struct TanhTable<double, 16> {
  static constexpr double step = 0x1.45a2b5413b254p+0;
  static constexpr double steps = 0x1.9282e492b4a33p-1;
  static constexpr double high = 0x1.314889ed2772fp+4;
  static constexpr double q[] = {-0x1.3e2fddfb6f792p-26, 0x1.d11bc42f6bb7dp-23, -0x1.225c5a5b6790fp-19, 0x1.66a7efd065ca6p-16, -0x1.bbd7750f17d53p-13, 0x1.1566abbb8f9cbp-9, -0x1.6c16c16c12584p-6, 0x1.555555555554bp-2};
  static constexpr double values[] = {0x0p+0, 0x1.b56c636e35725p-1, 0x1.f9b87d2faf00fp-1, 0x1.ff8103742489fp-1, 0x1.fff605557ae29p-1, 0x1.ffff3753576c5p-1, 0x1.fffff03cb2f1dp-1, 0x1.fffffec30793p-1, 0x1.ffffffe71a281p-1, 0x1.fffffffe0b56bp-1, 0x1.ffffffffd8ac6p-1, 0x1.fffffffffce93p-1, 0x1.ffffffffffc1ep-1, 0x1.fffffffffffb2p-1, 0x1.ffffffffffffap-1, 0x1p+0};
  static constexpr double slopes[] = {0x1p+0, 0x1.1494c6a5b1ec4p-2, 0x1.8f69d25adcb2dp-6, 0x1.fbb331db08877p-10, 0x1.3f5233f837296p-13, 0x1.91590280403cp-17, 0x1.f8699a0294af9p-21, 0x1.3cf86ca006acfp-24, 0x1.8e5d7ef69254cp-28, 0x1.f4a9505aceb35p-32, 0x1.3a9cf302b1083p-35, 0x1.8b670d16e7ce7p-39, 0x1.f0f01b961b419p-43, 0x1.3845f5969c00bp-46, 0x1.88763f23a36dbp-50, 0x1.ed3dfd9d29ca8p-54};
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
