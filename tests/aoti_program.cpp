// Runs a package of AOTInductor without Python: prints, for images sin(0), sin(1), ..., every output.
//
//     aoti_program PACKAGE B C H W
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: aoti_program PACKAGE B C H W\n");
    return 2;
  }
  std::vector<int64_t> shape;
  for (int axis = 2; axis < argc; ++axis) {
    shape.push_back(std::atoll(argv[axis]));
  }
  torch::NoGradGuard no_grad;
  torch::inductor::AOTIModelPackageLoader package(argv[1]);
  std::vector<torch::Tensor> inputs{
      torch::sin(torch::arange(c10::multiply_integers(shape), torch::kFloat32)).view(shape)};
  const torch::Tensor output = package.run(inputs).at(0).contiguous();
  for (int64_t i = 0; i < output.numel(); ++i) {
    std::printf("%.9g\n", output.data_ptr<float>()[i]);
  }
  return 0;
}
